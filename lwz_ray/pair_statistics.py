"""What a set of preference pairs is like: counts, and how much length alone tells."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def length_statistics(rows: Iterable[Mapping[str, Any]], kinds: Sequence[str], match_words: float) -> dict[str, Any]:
    """Return the length statistics of each kind that has pairs, and of `all`.

    `ratio` is words of the rejected text over words of the chosen one. `rejected_longer`, `rejected_shorter` and
    `matched` (within `match_words`) are shares of pairs; `always_shorter_wins` is the accuracy of preferring the
    shorter text, ties counted half: 0.5 says that length tells nothing.
    """
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        ratio = row["words_rejected"] / row["words_chosen"]
        ratios[row["kind"]].append(ratio)
        ratios["all"].append(ratio)
    return {kind: _of(np.asarray(ratios[kind]), match_words) for kind in [*kinds, "all"] if kind in ratios}


def _of(ratios: np.ndarray, match_words: float) -> dict[str, float]:
    longer, shorter = float((ratios > 1).mean()), float((ratios < 1).mean())
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    return {
        "pairs": int(ratios.size),
        "ratio_p10": float(low),
        "ratio_median": float(middle),
        "ratio_p90": float(high),
        "rejected_longer": longer,
        "rejected_shorter": shorter,
        "matched": float((np.abs(ratios - 1) <= match_words).mean()),
        "always_shorter_wins": longer + 0.5 * (1 - longer - shorter),
    }
