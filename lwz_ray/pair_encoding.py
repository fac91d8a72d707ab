"""The tokens that a reward model reads: alike in training and serving, and for every engine.

    head (request, opening of the answer's turn) + body (answer) + tail (closing of the turn)

The three parts are tokenized apart, so that an answer longer than the context can be cut into windows of tokens that
each keep the request, against which quality is judged, and the tail, from whose last token the score is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lwz_ray.errors import UserError

_SLOT = "\x00answer\x00"
"""Stands for the answer while the chat template is rendered; no text holds it."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One request with one answer."""

    head: tuple[int, ...]
    body: tuple[int, ...]
    tail: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.head) + len(self.body) + len(self.tail)

    @property
    def token_ids(self) -> list[int]:
        """The whole sequence, whatever its length."""
        return [*self.head, *self.body, *self.tail]


@dataclass(frozen=True, slots=True)
class Windows:
    """One answer as the rows that a model reads."""

    rows: tuple[list[int], ...]
    """Token ids, each at most the model's context."""
    weights: tuple[int, ...]
    """Answer tokens of each row."""
    coverage: float
    """Share of the answer's tokens that lie in some row, in (0, 1]; 1 for an empty answer."""


class PairEncoder:
    """Formats request and answer through the tokenizer's chat template, or as "request, blank line, answer"."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: a Hugging Face tokenizer."""
        self._tokenizer = tokenizer
        self._chat = getattr(tokenizer, "chat_template", None) is not None

    def encode(self, prompt: str, text: str) -> EncodedText:
        """Return the three parts; nothing is cut."""
        if not self._chat:
            head = self._tokenizer(f"{prompt}\n\n").input_ids
            return EncodedText(tuple(head), self._plain(text), ())
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": _SLOT}]
        rendered = self._tokenizer.apply_chat_template(turns, tokenize=False)
        before, slot, after = rendered.rpartition(_SLOT)
        if not slot:
            raise UserError("the reward model's chat template leaves out the assistant's text; give it another one")
        return EncodedText(self._plain(before), self._plain(text), self._plain(after))

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids) if text else ()


def cut_windows(text: EncodedText, max_length: int, overlap: int, max_windows: int) -> Windows:
    """Return the answer in windows of at most `max_length` tokens, head and tail included.

    Neighbours share `overlap` tokens. An answer that would need more than `max_windows` is covered by that many, spread
    evenly from its first token to its last. Raises UserError where head and tail leave no room.
    """
    room = max_length - len(text.head) - len(text.tail)
    if room < 1:
        raise UserError(
            f"a request of {len(text.head)} tokens leaves no room for an answer in the reward model's context of "
            f"{max_length} tokens; raise rewards.writing.max_length_tokens or lower data.max_prompt_tokens"
        )
    num = len(text.body)
    if num <= room:
        return Windows((text.token_ids,), (num,), 1.0)
    stride = max(1, room - overlap)
    needed = 1 + -(-(num - room) // stride)
    count = min(needed, max_windows)
    last = num - room
    starts = [round(i * last / (count - 1)) for i in range(count)] if count > 1 else [0]
    covered = _covered(starts, room)
    rows = tuple([*text.head, *text.body[s : s + room], *text.tail] for s in starts)
    return Windows(rows, (room,) * count, covered / num)


def aggregate(scores: Sequence[float], weights: Sequence[int], how: str) -> float:
    """Return one score of an answer's windows: `mean` weighted by their answer tokens, or `min`."""
    if how == "min":
        return min(scores)
    total = sum(weights)
    if total == 0:
        return scores[0]
    return sum(s * w for s, w in zip(scores, weights, strict=True)) / total


def _covered(starts: Sequence[int], room: int) -> int:
    covered, reached = 0, 0
    for start in starts:
        covered += start + room - max(start, reached)
        reached = start + room
    return covered
