"""Say a passage again further down: in the same words (`repeat`) or in others (`paraphrase`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lwz_ray.degradations.passages import Passages, split_passages
from lwz_ray.degradations.rewriting import swap_one_word
from lwz_ray.text import count_words

MIN_WORDS = 5
"""Shorter sentences are no passage to say again."""
SAME_LENGTH = 0.5
"""Share of the texts in which the copy takes the place of later sentences."""
TOUCHED = 0.5
"""Share of the copies in which one word differs."""


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Which sentences are said again, and where."""

    chosen: tuple[int, ...]
    """Indices of the sentences, in order."""
    at: int
    """The copies stand before the sentence of this index."""
    same_length: bool
    """Copies replace later sentences instead of adding to them."""


def plan_copies(passages: Passages, rng: np.random.Generator, most: int) -> CopyPlan | None:
    """Return a plan with 1 to `most` neighbouring sentences; None where no sentence is long enough.

    most: also limited to half of the sentences. With `same_length` there is a later sentence to replace.
    """
    n = len(passages)
    same_length = bool(rng.random() < SAME_LENGTH)
    # The last sentence has no later one: only a copy that is added may follow it.
    usable = [i for i, words in enumerate(passages.words) if words >= MIN_WORDS and i < n - same_length]
    if n < 2 or not usable:
        return None
    first = int(usable[rng.integers(len(usable))])
    length = int(rng.integers(1, min(most, max(1, n // 2)) + 1))
    chosen = tuple(i for i in usable if first <= i < first + length)
    at = int(rng.integers(chosen[-1] + 1, n + 1 - same_length))
    return CopyPlan(chosen, at, same_length)


def insert_copies(passages: Passages, plan: CopyPlan, copies: Sequence[str]) -> str:
    """Return the text with the copies in their place.

    With `same_length` as many sentences from there on give way, and as many of the copies are used (at least one of
    each), as bring the words closest to the original's.
    """
    later = passages.sentences[plan.at :]
    used, dropped = len(copies), 0
    if plan.same_length:
        added = np.cumsum([count_words(c) for c in copies])
        lost = np.cumsum(passages.words[plan.at :])
        gap = np.abs(added[:, None] - lost[None, :])
        used, dropped = (int(i) + 1 for i in np.unravel_index(gap.argmin(), gap.shape))
    return passages.assembled([*passages.sentences[: plan.at], *copies[:used], *later[dropped:]])


def repeat(text: str, rng: np.random.Generator) -> str | None:
    """Return the text with a passage pasted again further down, once to three times, near-verbatim; or None."""
    passages = split_passages(text)
    plan = plan_copies(passages, rng, most=3)
    if plan is None:
        return None
    passage = [passages.sentences[i] for i in plan.chosen]
    times = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
    copies = [
        swap_one_word(sentence, passages.language, rng) if rng.random() < TOUCHED else sentence
        for _ in range(times)
        for sentence in passage
    ]
    spoiled = insert_copies(passages, plan, copies)
    return None if spoiled == passages.text else spoiled
