"""The plan of `stage=sft`: what a step takes, how often the pairs come round, and a learner's memory."""

from launch.memory import Estimate
from launch.memory_learner import learner_estimate
from launch.plan_corpus import limit_text, rows_lines
from launch.preflight_corpus import is_absent
from launch.shapes import ModelShape
from lwz_ray.chat_pairs import count_pairs
from lwz_ray.config import Config
from lwz_ray.sources import HUB


def estimates(config: Config, shape: ModelShape) -> list[Estimate]:
    """Return the memory of the stage's only processes."""
    return [learner_estimate(config, shape)]


def batch(config: Config) -> list[str]:
    """Return the lines about conversations, steps and tokens."""
    size, longest, steps = config.sft.samples_per_step, config.model.max_length_tokens, config.steps
    return [
        "batch",
        f"  {size} sft.samples_per_step x {steps:,} steps = {size * steps:,} conversations{limit_text(config)}",
        f"  {size} conversations x at most {longest:,} tokens = {size * longest:,} a step; the assistant's turns are "
        "trained, the others read",
        *rows_lines(config, size * longest),
        *_pairs(config),
    ]


def _pairs(config: Config) -> list[str]:
    """Return what the file holds, where it is here to be counted."""
    path = config.sft.path
    if path is None or path.startswith(HUB) or is_absent(path):
        return [f"  conversations: not counted, {path} is not here yet"]
    found, bad = count_pairs(config, "sft.path")
    left_out = f", {bad:,} bad rows left out" if bad else ""
    held = 0 if config.sft.eval_path is not None else max(1, round(config.sft.held_out_share * found))
    epochs = config.sft.samples_per_step * config.steps / max(1, found - held)
    return [
        f"  {found:,} conversations (those too long included{left_out}), about {held:,} of them held out: "
        f"{epochs:.1f} epochs in {config.steps:,} steps"
    ]
