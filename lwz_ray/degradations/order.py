"""Spoil the order of a text, or its end."""

import numpy as np
import regex

from lwz_ray.degradations.passages import WORD, split_passages

LEAST_MOVED = 0.6
"""Share of the sentences that a shuffle moves at least."""
CUT_SHARES = (0.3, 0.8)
"""Of the words that a cut leaves."""
_BOUNDARY = regex.compile(r"[.!?。！？…\n]")


def shuffle(text: str, rng: np.random.Generator) -> str | None:
    """Return the text with 60 to 100 percent of its sentences moved; None where it has fewer than two.

    The sentences that move take each other's places in a ring, so that each of them really moves; paragraphs keep their
    number of sentences.
    """
    passages = split_passages(text)
    n = len(passages)
    if n < 2:
        return None
    num_moved = int(rng.integers(max(2, int(np.ceil(LEAST_MOVED * n))), n + 1))
    ring = rng.permutation(n)[:num_moved]
    order = np.arange(n)
    order[ring] = np.roll(ring, 1)
    shuffled = passages.reordered([int(i) for i in order])
    return None if shuffled == passages.text else shuffled


def cut(text: str, rng: np.random.Generator) -> str | None:
    """Return the first 30 to 80 percent of the words, ending inside a sentence; None where that cannot be.

    One cut in four falls inside a word, as a token limit does.
    """
    text = text.strip()
    words = list(WORD.finditer(text))
    first, last = (round(share * len(words)) for share in CUT_SHARES)
    places = [
        k
        for k in range(max(first, 1), min(last, len(words) - 1) + 1)
        if not _BOUNDARY.search(text, words[k - 1].end(), words[k].start())
    ]
    if not places:
        return None
    k = int(places[rng.integers(len(places))])
    if rng.random() < 0.25 and len(words[k].group()) > 3:
        return text[: words[k].start() + int(rng.integers(1, len(words[k].group()) - 1))]
    return text[: words[k - 1].end()]
