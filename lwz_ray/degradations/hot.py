"""Go on at a high temperature: the text's first part stays, the model writes the rest."""

import numpy as np
import regex

from lwz_ray.degradations.passages import WORD, ends_closed
from lwz_ray.text import count_words

HEAD_SHARES = (0.2, 0.6)
"""Share of the words that stay."""
NEAR_END = 0.9
"""A sentence that ends after this share of the words wanted is where a long continuation is cut."""
_LAST_END = regex.compile(r".*[.!?。！？](?=\s|$|\p{Han})", regex.DOTALL)


def split_head(text: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """Return the first 20 to 60 percent of the words and the rest; None where either would be empty."""
    text = text.strip()
    words = list(WORD.finditer(text))
    if len(words) < 2:
        return None
    k = min(len(words) - 1, max(1, round(rng.uniform(*HEAD_SHARES) * len(words))))
    return text[: words[k - 1].end()], text[words[k - 1].end() :]


def draw_temperature(highest: float, rng: np.random.Generator) -> float:
    """Return a temperature between the middle of 1 and `highest`, and `highest`: severity varies."""
    low, high = sorted((highest, (1.0 + highest) / 2.0))
    return float(rng.uniform(low, high))


def join_hot(head: str, rest: str, continuation: str) -> str | None:
    """Return head and continuation; None where the model wrote no word.

    A continuation longer than the `rest` that it replaces is cut to as many words, and at a sentence's end where one
    is near; an open end is closed with a mark. So neither length nor the end gives it away.
    """
    limit = count_words(rest)
    words = list(WORD.finditer(continuation))
    if not words:
        return None
    if len(words) > limit >= 1:
        continuation = continuation[: words[limit - 1].end()]
    continuation = continuation.rstrip()
    if not ends_closed(continuation):
        last = _LAST_END.match(continuation)
        if last is not None and count_words(last.group()) >= NEAR_END * limit:
            continuation = last.group()
        else:
            continuation += "。" if regex.search(r"\p{Han}$", continuation) else "."
    return head + continuation
