"""From scored groups to what the learner trains on: advantages, masks, global denominators, minibatches."""

from collections.abc import Sequence

import numpy as np

from lwz_ray.advantages import batch_advantages
from lwz_ray.config import AlgorithmConfig
from lwz_ray.errors import RewardFailure
from lwz_ray.token_weights import token_weights_of
from lwz_ray.records import Group, Sample, TrainSample


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


def advantages_of(groups: Sequence[Group], weights: dict[str, float], algorithm: AlgorithmConfig) -> list[np.ndarray]:
    """Return each group's advantages [group_size]."""
    active = [k for k, w in weights.items() if w > 0]
    return batch_advantages([reward_arrays(g, active) for g in groups], weights, algorithm.advantage)


def train_sample(sample: Sample, advantage: float, token_weight: float, masked: bool) -> TrainSample:
    """Join prompt and completion; the loss mask comes from the roles."""
    num_prompt, num_completion = len(sample.prompt_token_ids), sample.completion.num_tokens
    mask = np.zeros(num_prompt + num_completion, dtype=bool)
    mask[num_prompt:] = not masked
    logprobs = np.zeros(num_prompt + num_completion, dtype=np.float32)
    logprobs[num_prompt:] = sample.completion.rollout_logprobs
    token_ids = np.concatenate([sample.prompt_token_ids, sample.completion.token_ids]).astype(np.int32)
    advantages = np.where(mask, np.float32(advantage), np.float32(0.0))
    return TrainSample(token_ids, num_prompt, mask, logprobs, advantages, token_weight)


def minibatches_of(
    groups: Sequence[Group], advantages: Sequence[np.ndarray], algorithm: AlgorithmConfig, fixed_length_tokens: int
) -> list[list[TrainSample]]:
    """Cut a batch into `minibatches` runs of groups; each minibatch has its own denominators."""
    out = []
    for part in np.array_split(np.arange(len(groups)), algorithm.minibatches):
        rows = [(s, a) for g in part for s, a in zip(groups[g].samples, advantages[g], strict=True)]
        masked = [algorithm.truncated == "mask" and s.completion.finish_reason == "length" for s, _ in rows]
        lengths = [0 if m else s.completion.num_tokens for (s, _), m in zip(rows, masked, strict=True)]
        weights = token_weights_of(lengths, algorithm.loss_aggregation, fixed_length_tokens)
        out.append([train_sample(s, a, w, m) for (s, a), w, m in zip(rows, weights, masked, strict=True)])
    return out
