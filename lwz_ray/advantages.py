"""Advantages of samples from several rewards; each method's equation is at `group_advantages`.

The paper's method averages advantages, not rewards, which keeps the reward with the widest scale from ruling
(arXiv 2506.18841). All numbers here are per sample; PPO's are per token and come from `gae`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lwz_ray.config_algorithm import AdvantageMethod

SPREAD_FLOOR = 1e-6
"""A standard deviation at or below this counts as no spread."""

WHITENED: tuple[AdvantageMethod, ...] = ("normalise_sum_batch", "batch_whitened", "centred_batch_whitened")
"""Methods that look across groups: the last step is over the whole batch."""


def has_spread(values: np.ndarray) -> bool:
    """Tell whether the present (non-NaN) rewards of one group differ. values: [group_size]."""
    present = _present(values)
    return present.size > 1 and float(present.std()) > SPREAD_FLOOR


def normalise(values: np.ndarray) -> np.ndarray:
    """Centre and scale one group's rewards by its population std; NaN (abstained) and groups without spread give 0.

    values: [group_size], NaN where the component abstains for that sample.
    """
    if not has_spread(values):
        return np.zeros_like(values)
    present = _present(values)
    return np.nan_to_num((values - present.mean()) / present.std(), nan=0.0)


def whiten(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Centre and scale by mean and population std over all parts together; without spread all become 0."""
    if not parts:
        return []
    everything = np.concatenate(parts)
    if everything.size == 0 or everything.std() <= SPREAD_FLOOR:
        return [np.zeros_like(p) for p in parts]
    return [(p - everything.mean()) / everything.std() for p in parts]


def batch_means(groups: Sequence[Mapping[str, np.ndarray]], weights: Mapping[str, float]) -> dict[str, float]:
    """Return each reward's mean over the samples of a batch that have it; 0 where none has."""
    present: dict[str, list[np.ndarray]] = {}
    for rewards in groups:
        for k in _active(rewards, weights):
            present.setdefault(k, []).append(_present(rewards[k]))
    return {k: _mean_or(np.concatenate(values), 0.0) for k, values in present.items()}


def summed_rewards(
    rewards: Mapping[str, np.ndarray], weights: Mapping[str, float], means: Mapping[str, float] | None = None
) -> np.ndarray:
    """Return the weighted sums R_i = sum_k w_k r[k, i] of one group, float64 [group_size].

    A sample takes, for a reward that abstains, the mean over its group, so that it neither gains nor loses by
    abstaining. Where the whole group abstains, all its samples take that reward's mean of `means` (`batch_means`), so
    that groups stay comparable, or 0.
    """
    total = np.zeros(len(next(iter(rewards.values()))))
    for k, weight in _active(rewards, weights).items():
        values = np.asarray(rewards[k], dtype=np.float64)
        otherwise = 0.0 if means is None else means.get(k, 0.0)
        total += weight * np.nan_to_num(values, nan=_mean_or(_present(values), otherwise))
    return total


def group_advantages(
    rewards: Mapping[str, np.ndarray], weights: Mapping[str, float], method: AdvantageMethod = "mean_of_normalised"
) -> np.ndarray:
    """Return the advantages [group_size] of one group; of a method in `WHITENED`, what is then whitened.

    rewards: component -> [group_size], NaN where it abstains. weights: component -> weight >= 0; 0 leaves it out. With
    N the normalised reward, (r - mean_group) / std_group, R the weighted sum of rewards and G the group's size:

    mean_of_normalised      sum_k w_k N[k, i] / sum_k w_k, both over the rewards that sample i has (the paper's)
    normalise_sum           N of R (GRPO, arXiv 2402.03300)
    normalise_sum_batch     sum_k w_k N[k, i], whitened over the batch (GDPO, arXiv 2601.05242)
    centred                 R_i - mean_group(R): no std (Dr. GRPO, arXiv 2503.20783)
    leave_one_out           R_i - mean of the others = G / (G - 1) (R_i - mean_group(R)) (RLOO, arXiv 2402.14740)
    batch_whitened          R_i, whitened over the batch: no baseline of the group (REINFORCE++, arXiv 2501.03262)
    centred_batch_whitened  R_i - mean_group(R), whitened over the batch (REINFORCE++-baseline, the same paper)
    """
    if method in ("mean_of_normalised", "normalise_sum_batch"):
        active = _active(rewards, weights)
        parts = np.asarray(sum(w * normalise(np.asarray(rewards[k], dtype=np.float64)) for k, w in active.items()))
        if method == "normalise_sum_batch":
            return parts
        present = np.asarray(sum(w * ~np.isnan(rewards[k]) for k, w in active.items()), dtype=np.float64)
        # Without any reward a sample is neither better nor worse than its group.
        return np.divide(parts, present, out=np.zeros_like(parts), where=present > 0)
    return _of_sum(summed_rewards(rewards, weights), method)


def batch_advantages(
    groups: Sequence[Mapping[str, np.ndarray]],
    weights: Mapping[str, float],
    method: AdvantageMethod = "mean_of_normalised",
) -> list[np.ndarray]:
    """Return the advantages of every group of a batch, as `group_advantages` says, whitened where the method does."""
    if method in ("mean_of_normalised", "normalise_sum_batch"):
        advantages = [group_advantages(rewards, weights, method) for rewards in groups]
    else:
        means = batch_means(groups, weights)
        advantages = [_of_sum(summed_rewards(rewards, weights, means), method) for rewards in groups]
    return whiten(advantages) if method in WHITENED else advantages


def _of_sum(total: np.ndarray, method: AdvantageMethod) -> np.ndarray:
    """Return the advantages of one group from its summed rewards, before any whitening over the batch."""
    if method == "batch_whitened":
        return total
    if method == "normalise_sum":
        return normalise(total)
    if method not in ("centred", "leave_one_out", "centred_batch_whitened"):
        raise ValueError(f"advantage={method} is not made from the rewards of a group")
    if not has_spread(total):
        return np.zeros_like(total)
    centred = total - total.mean()
    return centred * len(total) / (len(total) - 1) if method == "leave_one_out" else centred


def _active(rewards: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of the rewards that count; a penalty is a negative reward, never a negative weight."""
    if negative := {k: w for k, w in weights.items() if w < 0}:
        raise ValueError(f"negative weights {negative}: a penalty is a reward below 0 with a weight above 0")
    active = {k: w for k, w in weights.items() if w > 0 and k in rewards}
    if not active:
        raise ValueError(f"no reward with a positive weight: rewards {sorted(rewards)}, weights {dict(weights)}")
    return active


def _present(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _mean_or(present: np.ndarray, otherwise: float) -> float:
    return float(present.mean()) if present.size else otherwise
