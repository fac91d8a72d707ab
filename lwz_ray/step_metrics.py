"""What one training step reports about its groups. Keys are `stage/what`; docs/metrics.md explains each."""

from collections.abc import Sequence

import numpy as np

from lwz_ray.advantages import has_spread
from lwz_ray.batching import versions_of
from lwz_ray.errors import RewardFailure
from lwz_ray.grouping import MadeGroup
from lwz_ray.records import Sample

LENGTH_BUCKETS = (100, 250, 500, 1000, 2000, 4000, 8000)
"""Upper ends of the buckets of L_upper, in words."""


def group_metrics(made: Sequence[MadeGroup], weights: dict[str, float], max_tokens: int) -> dict[str, float]:
    """Return rewards/*, rollout/*, length/*, staleness/* and the mean seconds that a group took.

    max_tokens: the completion limit, to count what looping samples saved by ending early.
    """
    samples = [s for m in made for s in m.group.samples]
    completions = [s.completion for s in samples]
    tokens = np.asarray([c.num_tokens for c in completions])
    out = {
        "rollout/mean_words": float(np.mean([s.num_words for s in samples])),
        "rollout/tokens": float(tokens.sum()),
        "rollout/tail_ratio": float(tokens.max() / max(np.median(tokens), 1.0)),
        "rollout/truncated": float(np.mean([c.finish_reason == "length" for c in completions])),
        "rollout/cut_by_deadline": float(np.mean([c.finish_reason == "abort" for c in completions])),
        "rollout/looped": float(np.mean([c.finish_reason == "repetition" for c in completions])),
        "rollout/tokens_saved": float(
            sum(max_tokens - c.num_tokens for c in completions if c.finish_reason == "repetition")
        ),
        "rollout/well_formed": float(np.mean([s.parsed.well_formed for s in samples])),
        "staleness/mean": float(np.mean([m.staleness for m in made])),
        "staleness/max": float(max(m.staleness for m in made)),
        "staleness/token_mean": float(sum(_token_ages(m).sum() for m in made) / max(tokens.sum(), 1)),
        "staleness/mixed": float(np.mean([c.policy_version_min < c.policy_version_max for c in completions])),
        "time/generate_s": float(np.mean([m.generate_s for m in made])),
        "time/generate_max_s": max(m.generate_s for m in made),
        "time/score_s": float(np.mean([m.score_s for m in made])),
    }
    # `num_words` is `rollout/mean_words` already.
    for key in sorted({k for s in samples for k in s.measures} - {"num_words"}):
        out[f"rollout/{key}"] = float(np.mean([s.measures[key] for s in samples if key in s.measures]))
    ranged = [(s.num_words, s.prompt.length_range) for s in samples if s.prompt.length_range]
    if ranged:
        out["rollout/in_range"] = float(np.mean([low <= n <= high for n, (low, high) in ranged]))
    return out | _length_metrics(samples) | _reward_metrics(made, weights)


def _token_ages(made: MadeGroup) -> np.ndarray:
    """Return the age of every completion token at the version being trained, int64 [num_completion_tokens]."""
    trained = made.group.policy_version_min + made.staleness
    return trained - np.concatenate([versions_of(s) for s in made.group.samples])


def length_bucket(high: int) -> str:
    """Return the name of the bucket that a range's upper end falls into, in words."""
    for edge in LENGTH_BUCKETS:
        if high <= edge:
            return f"upto_{edge}"
    return f"above_{LENGTH_BUCKETS[-1]}"


def _length_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the length reward, the share in range and the samples by the length that was asked for."""
    buckets: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.prompt.length_range:
            buckets.setdefault(length_bucket(sample.prompt.length_range[1]), []).append(sample)
    out = {}
    for name, members in buckets.items():
        hits = [r[0] <= s.num_words <= r[1] for s in members if (r := s.prompt.length_range)]
        out[f"length/{name}_samples"] = float(len(members))
        out[f"length/{name}_in_range"] = float(np.mean(hits))
        rewards = [r for s in members if isinstance(r := s.rewards.get("length"), float)]
        if rewards:
            out[f"length/{name}_reward"] = float(np.mean(rewards))
    return out


def _reward_metrics(made: Sequence[MadeGroup], weights: dict[str, float]) -> dict[str, float]:
    out: dict[str, float] = {}
    failures = abstained = 0
    for component in weights:
        groups = []
        for m in made:
            values = [s.rewards.get(component) for s in m.group.samples]
            failed = [v for v in values if isinstance(v, RewardFailure)]
            failures += len(failed)
            abstained += sum(v.action == "abstain" for v in failed)
            groups.append(np.asarray([v for v in values if isinstance(v, float)]))
        present = np.concatenate(groups)
        if present.size:
            out[f"rewards/{component}"] = float(present.mean())
            out[f"rewards/{component}_std"] = float(np.mean([g.std() for g in groups if g.size]))
            out[f"rewards/{component}_no_spread"] = float(np.mean([not has_spread(g) for g in groups]))
    active = {k: w for k, w in weights.items() if w > 0 and f"rewards/{k}" in out}
    if active:
        out["rewards/total"] = sum(w * out[f"rewards/{k}"] for k, w in active.items()) / sum(active.values())
    return out | {"rewards/failures": float(failures), "rewards/abstained": float(abstained)}
