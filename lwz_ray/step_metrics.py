"""What one training step reports about its groups. Keys are `stage/what`; docs/metrics.md explains each."""

from collections.abc import Sequence

import numpy as np

from lwz_ray.advantages import has_spread
from lwz_ray.errors import RewardFailure
from lwz_ray.grouping import MadeGroup


def group_metrics(made: Sequence[MadeGroup], weights: dict[str, float]) -> dict[str, float]:
    """Return rewards/*, rollout/*, staleness/* and the mean seconds that a group took."""
    samples = [s for m in made for s in m.group.samples]
    completions = [s.completion for s in samples]
    out = {
        "rollout/mean_words": float(np.mean([s.num_words for s in samples])),
        "rollout/tokens": float(sum(c.num_tokens for c in completions)),
        "rollout/truncated": float(np.mean([c.finish_reason == "length" for c in completions])),
        "rollout/well_formed": float(np.mean([s.parsed.well_formed for s in samples])),
        "staleness/mean": float(np.mean([m.staleness for m in made])),
        "staleness/max": float(max(m.staleness for m in made)),
        "time/generate_s": float(np.mean([m.generate_s for m in made])),
        "time/score_s": float(np.mean([m.score_s for m in made])),
    }
    # `num_words` is `rollout/mean_words` already.
    for key in sorted({k for s in samples for k in s.measures} - {"num_words"}):
        out[f"rollout/{key}"] = float(np.mean([s.measures[key] for s in samples if key in s.measures]))
    ranged = [(s.num_words, s.prompt.length_range) for s in samples if s.prompt.length_range]
    if ranged:
        out["rollout/in_range"] = float(np.mean([low <= n <= high for n, (low, high) in ranged]))
    return out | _reward_metrics(made, weights)


def _reward_metrics(made: Sequence[MadeGroup], weights: dict[str, float]) -> dict[str, float]:
    out: dict[str, float] = {}
    failures = 0
    for component in weights:
        groups = []
        for m in made:
            values = [s.rewards.get(component) for s in m.group.samples]
            failures += sum(isinstance(v, RewardFailure) for v in values)
            groups.append(np.asarray([v for v in values if isinstance(v, float)]))
        present = np.concatenate(groups)
        if present.size:
            out[f"rewards/{component}"] = float(present.mean())
            out[f"rewards/{component}_std"] = float(np.mean([g.std() for g in groups if g.size]))
            out[f"rewards/{component}_no_spread"] = float(np.mean([not has_spread(g) for g in groups]))
    active = {k: w for k, w in weights.items() if w > 0 and f"rewards/{k}" in out}
    if active:
        out["rewards/total"] = sum(w * out[f"rewards/{k}"] for k, w in active.items()) / sum(active.values())
    return out | {"rewards/failures": float(failures)}
