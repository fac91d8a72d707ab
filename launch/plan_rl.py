"""The plan of `stage=rl`: what a step makes and trains, and the memory of its processes."""

import math

from launch.memory import Estimate, rollout_estimate, scorer_estimate
from launch.memory_learner import learner_estimate
from launch.plan_critic import critic_estimate
from launch.shapes import ModelShape, shape_of
from lwz_ray.config import Config


def estimates(config: Config, shape: ModelShape) -> list[Estimate]:
    """Return the memory of every kind of process; shape: the policy's."""
    found = [rollout_estimate(config, shape), learner_estimate(config, shape)]
    if config.rewards.writing.path is not None:
        found.insert(1, scorer_estimate(config, shape_of("rewards.writing.path", config.rewards.writing.path)))
    if config.algorithm.uses_critic:
        found.append(critic_estimate(config, shape))
    return found


def batch(config: Config) -> list[str]:
    """Return the lines about groups, samples, tokens and microbatches of a step."""
    samples, longest = config.samples_per_step, config.model.max_length_tokens
    completion = config.sampling.max_tokens
    tokens = samples * (config.data.max_prompt_tokens + completion)
    learners, minibatches = config.learners, config.algorithm.minibatches
    microbatches = math.ceil(tokens / learners.microbatch_tokens)
    in_flight = (config.max_staleness + 1) * config.groups_per_step
    return [
        "batch",
        f"  {config.groups_per_step} groups_per_step x {config.group_size} group_size = {samples} samples a step, "
        f"{config.steps} steps",
        f"  {samples} samples x at most {completion:,} completion tokens = {samples * completion:,} tokens a step; "
        f"with prompts of at most {config.data.max_prompt_tokens:,}: {tokens:,}",
        f"  at that length at least {microbatches} microbatches of {learners.microbatch_tokens:,} tokens "
        f"(longest sample {longest:,}), {microbatches / learners.ranks:.1f} a rank; minibatches {minibatches}",
        f"  max_staleness {config.max_staleness}: at most {in_flight} groups = {in_flight * config.group_size} samples "
        f"in flight; the engines decode {config.actors.replicas * config.actors.max_num_seqs} at once",
        *_critic_lines(config),
    ]


def _critic_lines(config: Config) -> list[str]:
    critic = config.critic
    if not config.algorithm.uses_critic:
        return []
    source = "model.path with a new value head" if critic.path is None else critic.path
    return [f"  critic from {source}: trained alone for the first {critic.warmup_steps} of {config.steps} steps"]
