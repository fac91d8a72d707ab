"""A text as its sentences and the white space between them, so that what is changed keeps the shape of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from lwz_ray.text import count_words, detect_language

WORD = regex.compile(r"\p{Han}|[\p{L}\p{N}][\p{L}\p{N}'’-]*+")
"""A place where a text can be cut: a word with its hyphens, or a Chinese character."""
# A mark of the Latin kind ends a sentence only before white space; titles and single initials end none.
_END = regex.compile(
    r"(?:[。！？…]++[”’」』）】]*+\s*+"
    r"|(?<!\b(?:Mr|Mrs|Ms|Dr|St|Prof|vs|No|\p{Lu}|e\.g|i\.e))[.!?]++[\"'”’)\]*]*+(?:\s++|$)"
    r"|\s*+\n\s*+)"
)
_CLOSED = regex.compile(r"[.!?。！？…][\"'”’)\]*」』）】]*$")


@dataclass(frozen=True, slots=True)
class Passages:
    """`sentences[i]` is followed by `gaps[i]`, white space; joined in order they are the text."""

    sentences: tuple[str, ...]
    """With their marks."""
    gaps: tuple[str, ...]
    """As many as sentences; the last is empty."""
    language: str

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    def text(self) -> str:
        return "".join(s + g for s, g in zip(self.sentences, self.gaps, strict=True))

    @property
    def space(self) -> str:
        """What stands between two sentences of one paragraph."""
        return "" if self.language == "zh" else " "

    @property
    def words(self) -> tuple[int, ...]:
        """Words of each sentence (Chinese: characters)."""
        return tuple(count_words(s) for s in self.sentences)

    def reordered(self, order: Sequence[int]) -> str:
        """Return the text with its sentences in another order and its gaps where they were."""
        parts = [self.sentences[i] for i in order]
        return "".join(s + g for s, g in zip(parts, self.gaps, strict=True))

    def assembled(self, sentences: Sequence[str]) -> str:
        """Return other sentences in the shape of this text: its gaps as far as they go, then plain ones."""
        inner = self.gaps[: len(self) - 1]
        gaps = [inner[i] if i < len(inner) else self.space for i in range(len(sentences) - 1)]
        return "".join(s + g for s, g in zip(sentences, [*gaps, ""], strict=True))


def split_passages(text: str) -> Passages:
    """Take a text apart; leading and trailing white space is left out, and nothing else is lost."""
    text = text.strip()
    pieces: list[tuple[str, str]] = []
    start = 0
    for match in _END.finditer(text):
        piece = text[start : match.end()]
        body = piece.rstrip()
        if count_words(body) == 0 and pieces:
            # A mark by itself (a dash, a row of stars) belongs to what stands before it.
            last, gap = pieces.pop()
            body, piece = last + gap + body, last + gap + piece
        pieces.append((body, piece[len(body) :]))
        start = match.end()
    if start < len(text):
        pieces.append((text[start:], ""))
    if not pieces:
        return Passages((), (), detect_language(text))
    sentences, gaps = zip(*pieces, strict=True)
    return Passages(tuple(sentences), (*gaps[:-1], ""), detect_language(text))


def ends_closed(text: str) -> bool:
    """Say whether the last sentence has its mark."""
    return _CLOSED.search(text.rstrip()) is not None
