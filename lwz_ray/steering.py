"""What steers learning in a group: its rewards as arrays, with the penalty that joins them; what is left out."""

from collections.abc import Sequence

import numpy as np

from lwz_ray.advantages import SPREAD_FLOOR, group_advantages
from lwz_ray.config import Config
from lwz_ray.config_algorithm import AlgorithmConfig
from lwz_ray.errors import RewardFailure
from lwz_ray.overlong import overlong_penalty
from lwz_ray.records import Group, Sample

OVERLONG = "overlong"
"""The component that `algorithm.overlong_buffer_tokens` adds."""


def reward_arrays(group: Group, components: Sequence[str]) -> dict[str, np.ndarray]:
    """Return component -> float64 [group_size], NaN where it abstains; a failure that drops groups is a ValueError."""
    out = {}
    for component in components:
        values = []
        for sample in group.samples:
            value = sample.rewards.get(component, float("nan"))
            if isinstance(value, RewardFailure) and value.action == "abstain":
                value = float("nan")
            if isinstance(value, RewardFailure):
                raise ValueError(f"group {group.group_id}: reward {component} failed: {value.reason}")
            values.append(float(value))
        out[component] = np.asarray(values)
    return out


def failed_component(group: Group, components: Sequence[str]) -> RewardFailure | None:
    """Return the first failure that drops the group, among the components that steer learning."""
    for sample in group.samples:
        for component in components:
            value = sample.rewards.get(component)
            if isinstance(value, RewardFailure) and value.action == "drop_group":
                return value
    return None


def steering_rewards(group: Group, config: Config) -> dict[str, np.ndarray]:
    """Return the arrays of the active rewards and of the overlong penalty, each float64 [group_size]."""
    out = reward_arrays(group, config.rewards.active)
    if config.algorithm.overlong_buffer_tokens:
        limit, buffer = config.sampling.max_tokens, config.algorithm.overlong_buffer_tokens
        lengths = [s.completion.num_tokens for s in group.samples]
        out[OVERLONG] = np.asarray([overlong_penalty(n, limit, buffer) for n in lengths], dtype=np.float64)
    return out


def steering_weights(config: Config) -> dict[str, float]:
    """Return the weight of each component of `steering_rewards`."""
    weights: dict[str, float] = {k: w for k, w in config.rewards.weights.items() if k in config.rewards.active}
    if config.algorithm.overlong_buffer_tokens:
        weights[OVERLONG] = config.algorithm.overlong_penalty
    return weights


def teaches_nothing(group: Group, config: Config) -> bool:
    """Tell whether every advantage of the group would be 0: its samples do not differ in what steers learning."""
    advantages = group_advantages(steering_rewards(group, config), steering_weights(config), config.algorithm.advantage)
    return bool(np.abs(advantages).max() <= SPREAD_FLOOR)


def is_masked(sample: Sample, algorithm: AlgorithmConfig) -> bool:
    """Tell whether a sample is left out of the loss because the token limit or its deadline cut it off."""
    return algorithm.truncated == "mask" and sample.completion.finish_reason in ("length", "abort")
