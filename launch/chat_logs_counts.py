"""What `recipe=chat_logs` counts: rows by source and reason, overlaps by benchmark, decisions and their ranges."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from launch.chat_curate_store import Decided
from lwz_ray.chat_logs_sieve import MARKS, REASONS, Candidate, LogSieve

OUTCOMES = ("kept", "not_needed", "unfulfillable", "out_of_limits", "too_wide", "unreadable", "refused")
EDGES = (0, 250, 500, 1000, 2000, 4000, 8000, 12000)
"""Of the buckets that the upper ends of ranges are counted in, in words."""


def sieve_counts(sieve: LogSieve) -> dict[str, Any]:
    """Return the counts of a sieve that has gone through every row; read = candidates + the reasons."""
    names = ("read", "candidates", *REASONS)
    total: Counter[str] = sum(sieve.counts.values(), Counter())
    return {
        "rows": {name: total[name] for name in names},
        "sources": {
            path: {"format": sieve.formats.get(path)} | {name: counts[name] for name in (*names, *MARKS)}
            for path, counts in sieve.counts.items()
        },
    }


def contamination(sieve: LogSieve) -> dict[str, Any]:
    """Return, for each benchmark, how many of its requests stand in the logs, and every place where one does."""
    benchmarks = {
        name: {
            "requests": size,
            "found": len({hit.index for hit, _, _ in sieve.hits if hit.benchmark == name}),
            "rows": len({(path, place) for hit, path, place in sieve.hits if hit.benchmark == name}),
        }
        for name, size in sieve.overlap.sizes.items()
    }
    hits = [
        {"benchmark": hit.benchmark, "request": hit.index, "share": round(hit.share, 4), "source": path, "place": place}
        for hit, path, place in sieve.hits
    ]
    return {"benchmarks": benchmarks, "hits": hits}


def decided_counts(pairs: Iterable[tuple[Candidate, Decided]]) -> dict[str, Any]:
    """Return the counts of what was decided, in one pass."""
    outcomes: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    buckets: Counter[str] = Counter()
    unreadable = 0
    for candidate, decided in pairs:
        outcomes[decided.outcome] += 1
        unreadable += decided.unreadable
        if decided.length_range is not None:
            languages[candidate.language] += 1
            origins[str(decided.range_from)] += 1
            buckets[bucket(decided.length_range[1])] += 1
    return {
        "decided": {name: outcomes[name] for name in OUTCOMES},
        "unreadable_replies": unreadable,
        "languages": {name: languages[name] for name in ("en", "zh")},
        "range_from": {name: origins[name] for name in ("request", "model")},
        "upper_words": {name: buckets[name] for name in _BUCKETS},
    }


def bucket(words: int) -> str:
    """Return the name of the bucket of an upper end: `501-1000` holds 501 to 1000."""
    for low, high in pairwise(EDGES):
        if words <= high:
            return f"{low + 1}-{high}"
    return _BUCKETS[-1]


_BUCKETS = (*(f"{low + 1}-{high}" for low, high in pairwise(EDGES)), f"above {EDGES[-1]}")
