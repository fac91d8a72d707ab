"""Requests that say nearly the same as an earlier one, found without comparing each with all."""

import hashlib
from collections.abc import Sequence

import numpy as np
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]

from lwz_ray.text import ngrams, units

NGRAM = 3
"""Words per n-gram (Chinese: characters). Ours."""
NUM_PERMUTATIONS = 128
MIN_RECALL = 0.995
"""Chance at which two requests exactly at the threshold must be compared."""
_EDGE = ""
"""Stands before and after the words: `units` gives no empty piece."""


def folded(text: str) -> tuple[str, ...]:
    """Return the words of a text as duplicates are told by them: letter case and punctuation aside."""
    return tuple(units(text.casefold()))


def word_shingles(pieces: Sequence[str]) -> set[str]:
    """Return the n-grams of a request's words, its edges marked, so that each word stands in `NGRAM` of them.

    N different words give N + 2 n-grams; two requests that differ in one word share N - 1 of N + 5, which is 0.7 at
    N = 15. Without the marks a short request that ends in another word would be a near-duplicate.
    """
    edge = (_EDGE,) * (NGRAM - 1)
    return {"\0".join(gram) for gram in ngrams((*edge, *pieces, *edge), NGRAM)}


def jaccard(a: set[str], b: set[str]) -> float:
    """Return |a and b| / |a or b|, 0 for two empty sets."""
    shared = len(a & b)
    either = len(a) + len(b) - shared
    return shared / either if either else 0.0


def num_bands(threshold: float) -> int:
    """Return the fewest bands with which two sets of that similarity meet in one with `MIN_RECALL`.

    B bands of r = 128 / B values: 1 - (1 - s^r)^B at similarity s (Leskovec et al., Mining of Massive Datasets, ch. 3).
    """
    bands = 1
    while bands < NUM_PERMUTATIONS and 1 - (1 - threshold ** (NUM_PERMUTATIONS // bands)) ** bands < MIN_RECALL:
        bands *= 2
    return bands


class NearDuplicates:
    """Remembers requests one by one; what is nearly one of them is told, and not remembered.

    MinHash signatures with locality-sensitive hashing find candidates (Broder 1997), the n-gram sets decide. A request
    of 80 words takes 4.5 KiB (measured). The answers depend on the order of asking and nothing else.
    """

    def __init__(self, threshold: float) -> None:
        """threshold: Jaccard similarity of the n-grams, in (0, 1], from which two requests are nearly the same."""
        self._threshold = threshold
        self._index = RMinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, num_bands=num_bands(threshold))
        self._kept: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, pieces: Sequence[str]) -> int | None:
        """Return the position of the first remembered request that this nearly repeats; else remember it as the next.

        pieces: as `folded` gives them.
        """
        shingles = sorted(word_shingles(pieces))
        (signature,) = RMinHash.from_token_sets([shingles], num_perm=NUM_PERMUTATIONS, seed=1)
        hashes = _hashes(shingles)
        for earlier in sorted(self._index.query(signature)):
            if _jaccard_of_hashes(self._kept[earlier], hashes) >= self._threshold:
                return earlier
        self._index.insert(len(self._kept), signature)
        self._kept.append(hashes)
        return None


def _hashes(shingles: Sequence[str]) -> np.ndarray:
    """Return the n-grams as uint64 [num_shingles], sorted: what is kept of a request must be small."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in shingles)
    return np.unique(np.frombuffer(digests, dtype=np.uint64))


def _jaccard_of_hashes(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.intersect1d(a, b, assume_unique=True).size
    return shared / (a.size + b.size - shared)
