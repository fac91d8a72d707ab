"""The plan of `stage=train_rm`: what a step takes, how often the pairs come round, and a learner's memory."""

import math
from dataclasses import replace
from pathlib import Path

from launch.memory import Estimate
from launch.memory_learner import learner_estimate
from launch.shapes import ModelShape
from lwz_ray.config import Config
from lwz_ray.preference_data import load_pairs, split_pairs
from lwz_ray.sources import HUB


def batch(config: Config) -> list[str]:
    """Return the lines about pairs, steps and tokens."""
    wanted, longest, budget = config.preference, config.model.max_length_tokens, config.learners.microbatch_tokens
    pairs, steps, ranks = wanted.pairs_per_step, config.steps, config.learners.ranks
    tokens = pairs * 2 * longest
    rows = math.ceil(tokens / budget)
    return [
        "batch",
        f"  {pairs} preference.pairs_per_step x {steps} steps = {pairs * steps:,} pairs",
        f"  {pairs} pairs x 2 texts x at most {longest:,} tokens = {tokens:,} a step; texts of one request share "
        "its tokens, and equal texts are computed once",
        f"  at that length at least {rows} microbatches of {budget:,} tokens, {rows / ranks:.1f} a rank",
        *_pairs(config),
    ]


def estimates(config: Config, shape: ModelShape) -> list[Estimate]:
    """Return the memory of the stage's only processes."""
    return [learner_estimate(config, scalar_shape(shape))]


def scalar_shape(shape: ModelShape) -> ModelShape:
    """Return the shape of a model with a scalar head in the place of the vocabulary's."""
    architecture = shape.architecture.replace("ForCausalLM", "ForSequenceClassification")
    return replace(shape, architecture=architecture, num_labels=1)


def _pairs(config: Config) -> list[str]:
    """Return what the files hold, where they are here to be counted."""
    wanted = config.preference
    paths = [p for p in (wanted.path, wanted.eval_path) if p is not None]
    absent = [p for p in paths if p.startswith(HUB) or not Path(p).is_file()]
    if absent:
        return [f"  pairs: not counted, {absent[0]} is not here yet"]
    found = load_pairs(wanted, wanted.path, wanted.split)
    aside = None if wanted.eval_path is None else load_pairs(wanted, wanted.eval_path, wanted.eval_split)
    train, held_out = split_pairs(wanted, config.seed, found, aside)
    epochs = wanted.pairs_per_step * config.steps / len(train)
    sources, new = len({p.source for p in train}), len({p.source for p in held_out})
    return [
        f"  {len(train):,} training pairs of {sources:,} sources, {len(held_out):,} held-out pairs of {new:,} "
        f"sources (those too long included): {epochs:.1f} epochs"
    ]
