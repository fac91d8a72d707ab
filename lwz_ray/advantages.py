"""Advantages from several rewards: normalised per reward within the group, then averaged.

Averaging advantages, not rewards, keeps the reward with the widest scale from ruling (arXiv 2506.18841). For reward k
and sample i of a group:  A[k, i] = (r[k, i] - mean_group) / std_group,  A[i] = sum_k w_k A[k, i] / sum_k w_k.
Mean and std are taken over the samples that have reward k; both sums run over the rewards that sample i has.
"""

from collections.abc import Mapping
import numpy as np

from lwz_ray.config_algorithm import AdvantageMethod

SPREAD_FLOOR = 1e-6
"""A group's standard deviation at or below this counts as no spread."""


def has_spread(values: np.ndarray) -> bool:
    """Tell whether the present (non-NaN) rewards of one group differ. values: [group_size]."""
    present = values[~np.isnan(values)]
    return present.size > 1 and float(present.std()) > SPREAD_FLOOR


def normalise(values: np.ndarray) -> np.ndarray:
    """Centre and scale one group's rewards by its population std; NaN (abstained) and groups without spread give 0.

    values: [group_size], NaN where the component abstains for that sample.
    """
    if not has_spread(values):
        return np.zeros_like(values)
    present = values[~np.isnan(values)]
    return np.nan_to_num((values - present.mean()) / present.std(), nan=0.0)


def group_advantages(
    rewards: Mapping[str, np.ndarray], weights: Mapping[str, float], method: AdvantageMethod = "mean_of_normalised"
) -> np.ndarray:
    """Return the advantages [group_size] of one group.

    rewards: component -> [group_size], NaN where it abstains. weights: component -> weight >= 0; 0 leaves it out.
    `normalise_sum` sums the weighted rewards first and normalises the sum (plain GRPO). `mean_of_normalised` is the
    paper's. `normalise_sum_batch` is their sum here; `batch_advantages` then whitens it over the batch (GDPO).
    """
    active = {k: w for k, w in weights.items() if w > 0 and k in rewards}
    if not active:
        raise ValueError(f"no reward with a positive weight: rewards {sorted(rewards)}, weights {dict(weights)}")
    if method == "normalise_sum":
        total = sum(w * np.nan_to_num(rewards[k], nan=_mean_or_zero(rewards[k])) for k, w in active.items())
        return normalise(np.asarray(total, dtype=np.float64))
    parts = np.asarray(sum(w * normalise(np.asarray(rewards[k], dtype=np.float64)) for k, w in active.items()))
    if method == "normalise_sum_batch":
        return parts
    present = np.asarray(sum(w * ~np.isnan(rewards[k]) for k, w in active.items()), dtype=np.float64)
    # Without any reward a sample is neither better nor worse than its group.
    return np.divide(parts, present, out=np.zeros_like(parts), where=present > 0)


def batch_advantages(
    groups: list[Mapping[str, np.ndarray]], weights: Mapping[str, float], method: AdvantageMethod = "mean_of_normalised"
) -> list[np.ndarray]:
    """Return the advantages of every group of a batch; only `normalise_sum_batch` looks across groups."""
    advantages = [group_advantages(rewards, weights, method) for rewards in groups]
    if method != "normalise_sum_batch":
        return advantages
    everything = np.concatenate(advantages)
    if everything.std() <= SPREAD_FLOOR:
        return [np.zeros_like(a) for a in advantages]
    return [(a - everything.mean()) / everything.std() for a in advantages]


def _mean_or_zero(values: np.ndarray) -> float:
    """An abstaining sample takes the mean of its group, so that it neither gains nor loses by abstaining."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else 0.0
