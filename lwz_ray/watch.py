"""The watch for reward games: what a policy does that raises its rewards without writing better."""

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lwz_ray.advantages import normalise
from lwz_ray.config import COMPONENTS, WatchConfig
from lwz_ray.evaluation import EvalSummary
from lwz_ray.records import Group, Sample
from lwz_ray.text import count_words, ngrams, units

OPENING_WORDS = 3
COPY_NGRAM = 4
GROUP_NGRAM = 4
AT_MOST_ONE = ("length", "format")
LEARNED = 0.95
"""A reward of at most 1 with a mean above this has little left to tell apart: that is no game."""


def watch_metrics(groups: Sequence[Group], weights: Mapping[str, float]) -> dict[str, float]:
    """Return `watch/*` of one step's groups; a number that cannot be had (no spread, no text) is absent."""
    samples = [s for g in groups for s in g.samples]
    answers = [s.parsed.answer or "" for s in samples]
    out = _correlations(groups) | _drivers(groups, weights)
    found = {
        "watch/compression_ratio": _mean([compression_ratio(a) for a in answers if a]),
        "watch/opening_entropy": opening_entropy(answers),
        "watch/copied_from_prompt": _mean([copied_share(s) for s in samples]),
        "watch/group_distinct_4": _mean([group_distinct(g, GROUP_NGRAM) for g in groups]),
        "watch/think_words": _mean([float(count_words(s.parsed.think)) for s in samples if s.parsed.think is not None]),
    }
    return out | {k: v for k, v in found.items() if v is not None}


def compression_ratio(text: str) -> float:
    """Return bytes over compressed bytes (zlib); near-copies in a text compress well, prose comes to 1.5 to 2.5."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw, 6))


def opening_entropy(answers: Sequence[str]) -> float | None:
    """Return the entropy of the answers' first words over the most that is possible; 0: all begin alike."""
    openings = Counter(tuple(units(a.casefold())[:OPENING_WORDS]) for a in answers if a)
    total = sum(openings.values())
    if total < 2:
        return None
    entropy = -sum(n / total * math.log(n / total) for n in openings.values())
    return entropy / math.log(total)


def copied_share(sample: Sample) -> float | None:
    """Return the share of an answer's 4-grams that stand in the request; None where it has none."""
    theirs = set(ngrams(units(sample.prompt.text.casefold()), COPY_NGRAM))
    own = list(ngrams(units((sample.parsed.answer or "").casefold()), COPY_NGRAM))
    return sum(gram in theirs for gram in own) / len(own) if own else None


def group_distinct(group: Group, n: int) -> float | None:
    """Return the different n-grams over all n-grams of a group's answers; low: the samples say the same."""
    grams = [g for s in group.samples for g in ngrams(units((s.parsed.answer or "").casefold()), n)]
    return len(set(grams)) / len(grams) if grams else None


def drift(before: EvalSummary, now: EvalSummary, second: str) -> float | None:
    """Return by how many standard deviations more the writing score rose than the second scorer's did.

    Both over the same held-out prompts and seeds; each rise is divided by that score's standard deviation over prompts
    before training. None where one of the scores is missing or did not vary.
    """
    rises = []
    for name in ("writing", second):
        if name not in before.per_prompt or name not in now.per_prompt:
            return None
        spread = float(np.nanstd(before.per_prompt[name]))
        if not spread > 0:
            return None
        rises.append((now.numbers[name] - before.numbers[name]) / spread)
    return rises[0] - rises[1]


@dataclass(frozen=True, slots=True)
class Alarm:
    """One limit that a step went past."""

    key: str
    value: float
    limit: float
    message: str


def alarms(
    metrics: Mapping[str, float], limits: WatchConfig, active: Sequence[str], max_mismatch: float = math.inf
) -> list[Alarm]:
    """Return what went past its limit in one step. max_mismatch: `algorithm.mismatch_warning`."""
    found = []
    rules = [
        ("train/mismatch", 1, max_mismatch, "engine and learner disagree about what was sampled"),
        ("rollout/distinct_2", -1, limits.min_distinct_2, "the answers repeat their word pairs"),
        ("watch/compression_ratio", 1, limits.max_compression_ratio, "the answers repeat themselves (they compress)"),
        ("watch/opening_entropy", -1, limits.min_opening_entropy, "the answers begin alike"),
        ("watch/copied_from_prompt", 1, limits.max_copied_from_prompt, "the answers copy the request"),
        ("eval/drift", 1, limits.max_drift, "the writing score rises and the second scorer does not follow"),
    ]
    for name in active:
        if not (name in AT_MOST_ONE and metrics.get(f"rewards/{name}", 0.0) > LEARNED):
            why = f"{name} no longer tells samples apart"
            rules.append((f"rewards/{name}_no_spread", 1, limits.max_no_spread, why))
        if len(active) > 1:
            rules.append((f"watch/{name}_driver", 1, limits.max_driver_share, f"{name} alone drives the advantage"))
        if name != "length":
            why = f"{name} follows the answers' length"
            rules.append((f"watch/{name}_length_correlation", 0, limits.max_length_correlation, why))
    for key, sign, limit, why in rules:
        value = metrics.get(key)
        if value is None:
            continue
        past = abs(value) > limit if sign == 0 else sign * value > sign * limit
        if past:
            found.append(Alarm(key, value, limit, f"{why}: {key} {value:.3f}, limit {limit:g}"))
    return found


def _correlations(groups: Sequence[Group]) -> dict[str, float]:
    """Correlate rewards with length and with each other, each centred in its group: that is what advantages see."""
    columns: dict[str, list[np.ndarray]] = {}
    for group in groups:
        words = np.asarray([float(s.num_words) for s in group.samples])
        rows = {"words": words} | {k: _rewards(group, k) for k in COMPONENTS}
        for name, row in rows.items():
            # A reward that nobody in the group got has no mean; its row stays NaN and is left out below.
            centre = np.nanmean(row) if not np.isnan(row).all() else np.nan
            columns.setdefault(name, []).append(row - centre)
    flat = {name: np.concatenate(rows) for name, rows in columns.items()}
    out = {}
    for name in COMPONENTS:
        value = _pearson(flat[name], flat["words"]) if flat else None
        if value is not None:
            out[f"watch/{name}_length_correlation"] = value
    for a, b in combinations(COMPONENTS, 2):
        value = _pearson(flat[a], flat[b]) if flat else None
        if value is not None:
            out[f"watch/{a}_{b}_correlation"] = value
    return out


def _drivers(groups: Sequence[Group], weights: Mapping[str, float]) -> dict[str, float]:
    """Return each active component's share of the summed absolute contributions to the advantages."""
    sums = {
        k: sum(float(np.abs(w * normalise(_rewards(g, k))).sum()) for g in groups) for k, w in weights.items() if w > 0
    }
    total = sum(sums.values())
    return {f"watch/{k}_driver": v / total for k, v in sums.items()} if total > 0 else {}


def _rewards(group: Group, component: str) -> np.ndarray:
    """Return float64 [group_size], NaN where the component abstains or failed."""
    values = [s.rewards.get(component) for s in group.samples]
    return np.asarray([v if isinstance(v, float) else np.nan for v in values], dtype=np.float64)


def _pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 3 or a[both].std() < 1e-9 or b[both].std() < 1e-9:
        return None
    return float(np.corrcoef(a[both], b[both])[0, 1])


def _mean(values: Sequence[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None
