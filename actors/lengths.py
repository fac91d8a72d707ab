"""How long a completion will be, guessed from what was written before."""

from dataclasses import dataclass

TOKENS_PER_WORD = 1.5
"""Before anything was written: English prose takes 1.3 tokens a word, tags and a plan come on top."""
UNKNOWN_TOKENS = 1024
"""Where neither a length was asked for nor a limit is known."""
MEMORY = 256
"""Completions that an average looks back on: the policy's lengths move while it learns."""


@dataclass(slots=True)
class _Mean:
    value: float = 0.0
    count: int = 0


class LengthEstimate:
    """Means of completion lengths, one for each doubling of the length that was asked for.

    A single factor would not do: an untrained policy writes much the same length whatever it is asked for.
    """

    def __init__(self) -> None:
        self._means: dict[int, _Mean] = {}

    def expect(self, requested_words: int, max_tokens: int | None) -> float:
        """Return tokens of a whole completion, at most `max_tokens`. requested_words: 0 where not known."""
        mean = self._means.get(requested_words.bit_length())
        if mean is not None:
            tokens = mean.value
        elif requested_words:
            tokens = TOKENS_PER_WORD * requested_words
        else:
            tokens = float(UNKNOWN_TOKENS if max_tokens is None else max_tokens)
        return tokens if max_tokens is None else min(tokens, float(max_tokens))

    def saw(self, requested_words: int, num_tokens: int) -> None:
        """Learn from a completion that ended."""
        mean = self._means.setdefault(requested_words.bit_length(), _Mean())
        mean.count = min(mean.count + 1, MEMORY)
        mean.value += (num_tokens - mean.value) / mean.count
