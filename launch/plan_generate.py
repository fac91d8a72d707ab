"""The plan of `stage=generate`: how much is written, and the memory of the engines that write it."""

from launch.memory import Estimate, rollout_estimate
from launch.shapes import ModelShape
from lwz_ray.config import Config
from lwz_ray.sources import HUB


def estimates(config: Config, shape: ModelShape) -> list[Estimate]:
    """Return the memory of the stage's engines."""
    return [rollout_estimate(config, shape)]


def batch(config: Config) -> list[str]:
    """Return the lines about texts and tokens; a local source is read, nothing is started."""
    from launch.stages.generate import read_prompts

    samples, limit, room = config.generate.samples_per_prompt, config.sampling.max_tokens, config.actors
    if config.generate.text is None and config.data.path.startswith(HUB):
        return ["texts", f"  {samples} to each prompt of {config.data.path}, each of at most {limit:,} tokens"]
    prompts = len(read_prompts(config, None).prompts)
    num = prompts * samples
    return [
        "texts",
        f"  {prompts} prompts x {samples} samples_per_prompt = {num} texts x at most {limit:,} tokens = "
        f"{num * limit:,} tokens; the engines decode {room.replicas * room.max_num_seqs} at once",
    ]
