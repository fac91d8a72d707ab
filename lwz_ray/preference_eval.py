"""How well scores agree with preferences, and whether they do more than count words. Pure functions of numbers.

A gap is the score of the chosen text minus that of the rejected one: above 0 the pair is right, 0 is a tie and counts
half. Intervals are bootstraps over sources, because the pairs of one source text go wrong together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lwz_ray.statistics import bootstrap_ratios, percentile_interval

UNNAMED = "unnamed"
"""The kind of pairs whose data names none."""
CALIBRATION_BINS = 10
LENGTH_BINS: tuple[tuple[str, float, float], ...] = (
    ("much shorter", -1.0, -0.5),
    ("shorter", -0.5, -0.1),
    ("alike", -0.1, 0.1),
    ("longer", 0.1, 0.5),
    ("much longer", 0.5, 1.0),
)
"""Of the chosen text against the rejected one: difference in words as a share of the longer text, low to high."""


@dataclass(frozen=True, slots=True, eq=False)
class PairScores:
    """Scored pairs, column by column; every column has one entry a pair."""

    chosen: np.ndarray
    """float64 [num_pairs]: scores of the preferred texts"""
    rejected: np.ndarray
    chosen_words: np.ndarray
    """int64 [num_pairs]"""
    rejected_words: np.ndarray
    sources: Sequence[str]
    kinds: Sequence[str | None]

    def __post_init__(self) -> None:
        columns = (self.rejected, self.chosen_words, self.rejected_words, self.sources, self.kinds)
        if len(self.chosen) == 0 or any(len(c) != len(self.chosen) for c in columns):
            raise ValueError(f"pair scores need equal, non-empty columns: {[len(self.chosen), *map(len, columns)]}")
        if not (np.isfinite(self.chosen).all() and np.isfinite(self.rejected).all()):
            raise ValueError("pair scores: a score is not finite")

    @property
    def gaps(self) -> np.ndarray:
        return np.asarray(self.chosen, dtype=np.float64) - np.asarray(self.rejected, dtype=np.float64)

    @property
    def word_gaps(self) -> np.ndarray:
        """Words of the chosen text minus those of the rejected one."""
        return np.asarray(self.chosen_words, dtype=np.float64) - np.asarray(self.rejected_words, dtype=np.float64)

    @property
    def word_shares(self) -> np.ndarray:
        """`word_gaps` as a share of the longer text, in [-1, 1]; 0 for two texts without words."""
        longer = np.maximum(np.maximum(self.chosen_words, self.rejected_words), 1)
        return self.word_gaps / longer


def evaluate_pairs(scores: PairScores, match_words: float, resamples: int, seed: int) -> dict[str, Any]:
    """Return every measure of one set of scored pairs, as plain numbers for JSON."""
    gaps = scores.gaps
    found = accuracies(gaps, scores.sources, scores.kinds, resamples, seed)
    found["mean_gap"] = float(gaps.mean())
    found["ties"] = int((gaps == 0).sum())
    found["log_loss"] = float(np.logaddexp(0.0, -gaps).mean())
    both = np.concatenate([scores.chosen, scores.rejected]).astype(np.float64)
    found["score"] = {
        "chosen_mean": float(np.mean(scores.chosen)),
        "rejected_mean": float(np.mean(scores.rejected)),
        "std": float(both.std()),
    }
    found["by_length_difference"] = by_length_difference(scores, resamples, seed)
    found["length_correlation"] = length_correlation(scores)
    found["matched"] = matched(scores, match_words, resamples, seed)
    found["calibration"] = calibration(gaps)
    return found


def outcomes(gaps: np.ndarray) -> np.ndarray:
    """Return 1 for a pair that is right, 0 for a wrong one, one half for a tie."""
    return 0.5 + 0.5 * np.sign(gaps)


def accuracies(
    gaps: np.ndarray, sources: Sequence[str], kinds: Sequence[str | None], resamples: int, seed: int
) -> dict[str, Any]:
    """Return pairwise accuracy, its mean over kinds, and every kind with the worst first, each with a 95% interval.

    An interval of [1, 1] says that none of the pairs went wrong, not that none can.
    """
    names = [UNNAMED if k is None else k for k in kinds]
    order = sorted(set(names))
    clusters = {source: i for i, source in enumerate(dict.fromkeys(sources))}
    sums = np.zeros((len(clusters), len(order)))
    counts = np.zeros_like(sums)
    for right, source, name in zip(outcomes(gaps), sources, names, strict=True):
        cell = clusters[source], order.index(name)
        sums[cell] += right
        counts[cell] += 1
    table = np.concatenate([sums, sums.sum(axis=1, keepdims=True)], axis=1)
    sizes = np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)
    means = table.sum(axis=0) / sizes.sum(axis=0)
    draws = bootstrap_ratios(table, sizes, resamples, seed)
    by_kind = [
        {"kind": k, "num_pairs": int(sizes[:, i].sum()), **percentile_interval(float(means[i]), draws[:, i]).as_dict()}
        for i, k in enumerate(order)
    ]
    # A draw without a pair of some kind averages over the kinds that it has.
    macro = percentile_interval(float(means[:-1].mean()), np.nanmean(draws[:, :-1], axis=1))
    return {
        "num_pairs": len(names),
        "num_sources": len(clusters),
        "accuracy": percentile_interval(float(means[-1]), draws[:, -1]).as_dict(),
        "macro_accuracy": macro.as_dict(),
        "by_kind": sorted(by_kind, key=lambda row: (row["mean"], row["kind"])),
    }


def by_length_difference(scores: PairScores, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return accuracy where the chosen text is shorter, alike or longer; bins without a pair are left out.

    A model that only likes long texts is right where the chosen text is longer and wrong where it is shorter.
    """
    shares, found = scores.word_shares, []
    # Inner edges belong to the bin nearer to 0.
    index = np.digitize(np.abs(shares), [0.1, 0.5], right=True) * np.sign(shares).astype(int) + 2
    for i, (name, low, high) in enumerate(LENGTH_BINS):
        members = np.flatnonzero(index == i)
        if members.size == 0:
            continue
        part = accuracies(
            scores.gaps[members],
            [scores.sources[int(m)] for m in members],
            [None] * members.size,
            resamples,
            seed,
        )
        found.append(
            {
                "chosen_is": name,
                "low": low,
                "high": high,
                "num_pairs": int(members.size),
                "mean_word_difference": float(scores.word_gaps[members].mean()),
                "accuracy": part["accuracy"],
            }
        )
    return found


def length_correlation(scores: PairScores) -> dict[str, float | None]:
    """Return how scores go with words: over all texts, and over the differences within pairs, each pair both ways.

    None where one of the two does not vary.
    """
    texts = np.concatenate([scores.chosen, scores.rejected]).astype(np.float64)
    words = np.concatenate([scores.chosen_words, scores.rejected_words]).astype(np.float64)
    # Pairs come with the chosen text first; both ways, the difference does not know which was preferred.
    gaps, word_gaps = np.concatenate([scores.gaps, -scores.gaps]), np.concatenate([scores.word_gaps, -scores.word_gaps])
    return {
        "score_pearson": pearson(texts, words),
        "score_spearman": pearson(ranks(texts), ranks(words)),
        "gap_pearson": pearson(gaps, word_gaps),
        "gap_spearman": pearson(ranks(gaps), ranks(word_gaps)),
    }


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the correlation of two columns; None where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return None if scale == 0 else float((a * b).sum() / scale)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values share the mean of their ranks. The correlation of ranks is Spearman's."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def matched(scores: PairScores, match_words: float, resamples: int, seed: int) -> dict[str, Any]:
    """Return the accuracies over the pairs whose texts are of about the same length; `num_pairs` 0 where none is."""
    members = np.flatnonzero(np.abs(scores.word_shares) <= match_words)
    if members.size == 0:
        return {"num_pairs": 0, "match_words": match_words}
    sources, kinds = [scores.sources[int(m)] for m in members], [scores.kinds[int(m)] for m in members]
    return {**accuracies(scores.gaps[members], sources, kinds, resamples, seed), "match_words": match_words}


def fit_length_rule(chosen_words: np.ndarray, rejected_words: np.ndarray) -> tuple[int, float]:
    """Return the better of two rules on training pairs, 1 for "longer wins" or -1 for "shorter", and its accuracy."""
    longer = float(outcomes(np.asarray(chosen_words, dtype=np.float64) - np.asarray(rejected_words)).mean())
    return (1, longer) if longer >= 0.5 else (-1, 1.0 - longer)


def length_baseline(
    scores: PairScores, train_words: tuple[np.ndarray, np.ndarray], resamples: int, seed: int
) -> dict[str, Any]:
    """Return what a rule that sees only the length reaches on these pairs; its direction is fitted on training pairs.

    train_words: words of the chosen and of the rejected training texts.
    """
    direction, on_train = fit_length_rule(*train_words)
    found = accuracies(direction * scores.word_gaps, scores.sources, scores.kinds, resamples, seed)
    return {"rule": "longer wins" if direction > 0 else "shorter wins", "train_accuracy": on_train, **found}


def calibration(gaps: np.ndarray) -> dict[str, Any]:
    """Return how often the model is right when it says p, with p = max(sigma(gap), sigma(-gap)) from 0.5 to 1.

    The chosen text always comes first, so sigma(gap) itself has one outcome only; folded at one half, p is the
    confidence in the text that the model prefers, and the outcome is whether that text was the chosen one.
    `expected_error` is the mean of |accuracy - confidence| over the bins, weighted by their pairs (Guo et al. 2017).
    """
    confidence = 1.0 / (1.0 + np.exp(-np.abs(gaps)))
    right = outcomes(gaps)
    width = 0.5 / CALIBRATION_BINS
    index = np.minimum(((confidence - 0.5) / width).astype(int), CALIBRATION_BINS - 1)
    bins, error = [], 0.0
    for i in range(CALIBRATION_BINS):
        members = index == i
        num = int(members.sum())
        if num == 0:
            continue
        said, was = float(confidence[members].mean()), float(right[members].mean())
        error += num / gaps.size * abs(said - was)
        bins.append(
            {
                "low": 0.5 + i * width,
                "high": 0.5 + (i + 1) * width,
                "num_pairs": num,
                "confidence": said,
                "accuracy": was,
            }
        )
    return {"expected_error": error, "mean_confidence": float(confidence.mean()), "bins": bins}
