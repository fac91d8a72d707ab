"""Passages that say again what an earlier passage said: by their characters (MinHash) or by their meaning (cosine)."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]

from lwz_ray.text import count_words, sentences, units

PASSAGE_WORDS = 30
"""A passage is a run of whole sentences with at least this many words: more than a refrain, less than a paragraph."""
MAX_SENTENCE_WORDS = 2 * PASSAGE_WORDS
PIECE_CHARACTERS: dict[str, int] = {"en": 6 * PASSAGE_WORDS, "zh": PASSAGE_WORDS}
"""A longer sentence (a loop without punctuation, a list) is cut into pieces of this size."""
SHINGLES: dict[str, tuple[int, ...]] = {"en": (5,), "zh": (1, 2)}
"""Characters per shingle. A Chinese word is one or two; single ones alone would find any two passages alike."""
NUM_PERMUTATIONS = 128
NUM_BANDS = 64
"""Bands of two values: two passages of Jaccard similarity s meet in one with 1 - (1 - s^2)^64, 0.98 at s = 0.25."""
MARGIN = 0.1
"""Three standard errors of the estimate at 0.2; candidates this far below the threshold are still compared exactly."""
ALMOST_EQUAL = 0.9
"""A passage this close to an indexed one adds nothing to the index, so a loop does not make it grow."""
MAX_EARLIER = 4096
"""Earlier passages that one is compared with, the nearest before it: all of them up to about 60,000 words."""
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Passages:
    """A text as sentences, and passages as spans of them; one passage begins at every sentence, so they overlap.

    A copy is found wherever it begins. The last passage goes to the end of the text.
    """

    sentences: list[str]
    spans: list[tuple[int, int]]
    """First sentence of each passage, and the one after its last."""

    def num_earlier(self, passage: int) -> int:
        """Return how many passages end before this one begins: only those can be what it repeats."""
        return bisect_right(self.spans, self.spans[passage][0], key=lambda span: span[1])

    def mark(self, repeated: Sequence[bool]) -> list[bool]:
        """Return, for each sentence, whether it stands in a passage that is marked as repeated."""
        marked = [False] * len(self.sentences)
        reached = 0
        for (start, end), mark in zip(self.spans, repeated, strict=True):
            if mark:
                for i in range(max(start, reached), end):
                    marked[i] = True
                reached = end
        return marked


@dataclass(frozen=True, slots=True)
class Repeats:
    """Which passages resemble an earlier one, and what it took to know."""

    repeated: list[bool]
    num_compared: int
    """Pairs of passages that were compared; bounded by a constant for each passage."""


def split_passages(text: str, language: Literal["en", "zh"]) -> Passages:
    """Split a text into sentences and overlapping passages of comparable size (time linear in the text)."""
    pieces = [part for sentence in sentences(text) for part in _cut(sentence, PIECE_CHARACTERS[language])]
    counts = [count_words(piece) for piece in pieces]
    spans: list[tuple[int, int]] = []
    end = words = 0
    for start, count in enumerate(counts):
        while end < len(pieces) and words < PASSAGE_WORDS:
            words += counts[end]
            end += 1
        if words < PASSAGE_WORDS:
            break
        spans.append((start, end))
        words -= count
    if spans:
        spans[-1] = (spans[-1][0], len(pieces))
    return Passages(pieces, spans)


def repeats_by_minhash(passages: Passages, language: Literal["en", "zh"], threshold: float) -> Repeats:
    """Mark the passages whose character shingles have a Jaccard similarity >= `threshold` with an earlier passage's.

    MinHash signatures with locality-sensitive hashing find candidates (Broder 1997; Leskovec et al., Mining of Massive
    Datasets, ch. 3); the shingle sets of those that come near the threshold decide, so the estimate's noise does not.
    """
    shingles = [_shingles(passages.sentences[start:end], language) for start, end in passages.spans]
    signatures = RMinHash.from_token_sets([list(s) for s in shingles], num_perm=NUM_PERMUTATIONS, seed=1)
    values = np.array([s.digest() for s in signatures], dtype=np.uint32).reshape(-1, NUM_PERMUTATIONS)
    index = RMinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, num_bands=NUM_BANDS)
    repeated: list[bool] = []
    indexed: list[float] = []
    num_compared = 0
    for current in range(len(shingles)):
        for ready in range(len(indexed), passages.num_earlier(current)):
            nearest = _nearest(values, ready, index.query(signatures[ready]))
            indexed.append(nearest)
            if nearest < ALMOST_EQUAL:
                index.insert(ready, signatures[ready])
        candidates = sorted(index.query(signatures[current]))[-MAX_EARLIER:]
        num_compared += len(candidates)
        estimates = (values[candidates] == values[current]).mean(axis=1) if candidates else np.empty(0)
        repeated.append(
            any(
                estimate >= threshold - MARGIN and _jaccard(shingles[earlier], shingles[current]) >= threshold
                for earlier, estimate in zip(candidates, estimates, strict=True)
            )
        )
    return Repeats(repeated, num_compared)


def repeats_by_cosine(passages: Passages, sums: np.ndarray, num_tokens: np.ndarray, threshold: float) -> Repeats:
    """Mark the passages whose embedding has a cosine >= `threshold` with an earlier passage's.

    sums: [sentences, width], token embeddings of each sentence added up; num_tokens: [sentences]. A passage's
    embedding is the mean over its tokens, so each sentence is read by the model once, whatever passages it stands in.
    Each passage is compared with the last `MAX_EARLIER` that end before it, as blocks of one matrix product.
    """
    if not passages.spans:
        return Repeats([], 0)
    # Sums over spans as differences of running sums, in float64: what is subtracted may be thousands of sentences long.
    total = np.concatenate([np.zeros((1, sums.shape[1])), np.cumsum(sums, axis=0, dtype=np.float64)])
    counts = np.concatenate([[0.0], np.cumsum(num_tokens, dtype=np.float64)])
    starts, ends = np.array(passages.spans).T
    means = (total[ends] - total[starts]) / (counts[ends] - counts[starts])[:, None]
    vectors = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    earlier = np.array([passages.num_earlier(k) for k in range(len(starts))])
    repeated: list[bool] = []
    for first in range(0, len(starts), _BLOCK):
        block = earlier[first : first + _BLOCK]
        low, high = max(0, int(block[0]) - MAX_EARLIER), int(block[-1])
        if high == 0:
            repeated += [False] * len(block)
            continue
        cosines = vectors[first : first + _BLOCK] @ vectors[low:high].T
        columns = np.arange(low, high)
        mine = (columns < block[:, None]) & (columns >= block[:, None] - MAX_EARLIER)
        repeated += (np.where(mine, cosines, -1.0).max(axis=1) >= threshold).tolist()
    return Repeats(repeated, int(np.minimum(earlier, MAX_EARLIER).sum()))


def _cut(sentence: str, size: int) -> list[str]:
    """Return a sentence as it is, or one of more than `MAX_SENTENCE_WORDS` words as pieces of `size` characters."""
    if count_words(sentence) <= MAX_SENTENCE_WORDS:
        return [sentence]
    return [sentence[i : i + size] for i in range(0, len(sentence), size)]


def _shingles(pieces: Sequence[str], language: Literal["en", "zh"]) -> set[str]:
    """Return the character n-grams of a passage's words; punctuation, letter case and line ends are left out."""
    words = [word for piece in pieces for word in units(piece.casefold())]
    text = ("" if language == "zh" else " ").join(words)
    return {text[i : i + size] for size in SHINGLES[language] for i in range(max(1, len(text) - size + 1))}


def _jaccard(a: set[str], b: set[str]) -> float:
    """Return |a and b| / |a or b|."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _nearest(values: np.ndarray, row: int, candidates: list[int]) -> float:
    """Return the highest estimated similarity of a row of signatures to its candidates; 0 without any."""
    return float((values[candidates[-MAX_EARLIER:]] == values[row]).mean(axis=1).max()) if candidates else 0.0
