"""When a rollout loops: its last tokens are one pattern over and over, or its last sentences are the same few."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex

from lwz_ray.text import SENTENCE_END, units

MAX_DISTINCT_SENTENCES = 16
"""Longest loop of sentences that is looked for."""
MIN_FIXED_WORDS = 6
"""A sentence with fewer words beside its numbers may differ in its numbers alone without being a repetition."""

_LIST_NUMBER = regex.compile(r"^\W*\d+\s*[.):、．：]\s*")
_LONE_NUMBER = regex.compile(r"^\W*\d+\W*$")
_DIGIT = regex.compile(r"\d")


@dataclass(frozen=True, slots=True)
class RepetitionRule:
    """What counts as a loop; the fields are those of `actors.repetition_stop` in the config."""

    max_pattern_tokens: int
    min_repeats: int
    min_looping_tokens: int
    check_every_tokens: int

    @property
    def pattern_sizes(self) -> tuple[int, int]:
        """Smallest and largest pattern to compare, in tokens.

        A pattern of p tokens is also one of 2p, 3p, …: every p up to the largest has a multiple in the upper half of
        the sizes, so the small ones need not be looked at. Leaving them out is what makes the repeats cover
        `min_looping_tokens` at any size.
        """
        largest = self.max_pattern_tokens
        return min(-(-self.min_looping_tokens // self.min_repeats), largest // 2 + 1), largest

    @property
    def repeats(self) -> int:
        """How often a pattern of these sizes must follow itself."""
        return max(self.min_repeats, -(-self.min_looping_tokens // self.pattern_sizes[0]))


def ends_in_loop(token_ids: Sequence[int], rule: RepetitionRule) -> bool:
    """Tell whether the last tokens are one pattern, repeated; the same rule as vLLM's `repetition_detection`.

    The work does not grow with the text: a comparison a size, and the whole tail only where the last token fits.

    Example: with patterns of 2 to 3 tokens and 3 repeats, [7, 1, 2, 1, 2, 1, 2] loops and [1, 2, 1, 2] does not.
    """
    smallest, largest = rule.pattern_sizes
    for size in range(smallest, largest + 1):
        covered = size * rule.repeats
        if covered > len(token_ids):
            return False
        if token_ids[-1] != token_ids[-1 - size]:
            continue
        tail = list(token_ids[-covered:])
        if tail[size:] == tail[:-size]:
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Sentence:
    written: str
    varying: str
    """As written, but with one sign for every number where enough words stand beside them."""
    num_words: int


class SentenceWatch:
    """Finds loops of whole sentences that token patterns miss: long ones, and ones whose numbers change.

    A loop is a run of last sentences in which each occurs `min_repeats` times on average and whose words number at
    least `min_looping_tokens`; where numbers are ignored, twice as many of both. A chorus between verses is none, since
    the verses stand between its repeats; rows of a table keep their numbers. Feeding a text in other pieces finds the
    same end.
    """

    def __init__(self, rule: RepetitionRule) -> None:
        self._rule = rule
        self._open = ""
        self._done = 0
        self._last: deque[_Sentence] = deque(maxlen=2 * rule.min_repeats * MAX_DISTINCT_SENTENCES)

    def add(self, text: str) -> int | None:
        """Take the next piece of text; return where the looping text ends, in characters from its start, or None."""
        self._open += text
        begin = 0
        for end in SENTENCE_END.finditer(self._open):
            if end.end() == len(self._open):
                break  # What follows decides whether a sentence ends here.
            sentence = _sentence(self._open[begin : end.start()])
            begin = end.end()
            if sentence is None:
                continue
            self._last.append(sentence)
            if self._loops():
                return self._done + begin
        self._done += begin
        self._open = self._open[begin:]
        return None

    def _loops(self) -> bool:
        repeats, words = self._rule.min_repeats, self._rule.min_looping_tokens
        newest_first = list(reversed(self._last))
        return _repeat((s.written for s in newest_first), newest_first, repeats, words) or _repeat(
            (s.varying for s in newest_first), newest_first, 2 * repeats, 2 * words
        )


def _sentence(text: str) -> _Sentence | None:
    """Return the sentence to compare; None for what has no words, such as a list's number."""
    if _LONE_NUMBER.match(text):
        return None
    words = units(_LIST_NUMBER.sub("", text).casefold())
    if not words:
        return None
    written = " ".join(words)
    fixed = sum(1 for word in words if not _DIGIT.search(word))
    if fixed == len(words) or fixed < MIN_FIXED_WORDS or "|" in text or "\t" in text:
        return _Sentence(written, written, len(words))
    return _Sentence(written, " ".join("#" if _DIGIT.search(word) else word for word in words), len(words))


def _repeat(keys: Iterable[str], sentences: Sequence[_Sentence], repeats: int, min_words: int) -> bool:
    """Tell whether some run of newest sentences has each key `repeats` times on average and words enough."""
    seen: set[str] = set()
    num_words = 0
    for number, (key, sentence) in enumerate(zip(keys, sentences, strict=True), start=1):
        seen.add(key)
        if len(seen) > MAX_DISTINCT_SENTENCES:
            return False
        num_words += sentence.num_words
        if num_words >= min_words and number >= repeats * len(seen):
            return True
    return False
