"""Count, split and compare text by one rule that treats Chinese and English alike."""

from collections.abc import Iterator, Sequence
from typing import Literal

import regex

# Scripts written without spaces between words, of which every character counts by itself. The two sound marks
# (full and half width) are of no script, so they are named. A voicing mark belongs to the kana before it.
_SINGLE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\u30fc\uff70]"
_VOICING = r"[\p{M}\uff9e\uff9f]*+"
_INSIDE = r"[[\p{L}\p{N}\p{M}\u00ad\u200c\u200d]--[" + _SINGLE + r"]]"
_START = r"[[\p{L}\p{N}]--[" + _SINGLE + r"]]"
_RUN = (
    rf"{_START}{_INSIDE}*+"
    rf"(?:['’＇]{_START}{_INSIDE}*+"
    rf"|(?<=\p{{Nd}})\.(?=\p{{Nd}}){_INSIDE}*+"
    rf"|(?<=\p{{Nd}}),(?=\p{{Nd}}{{3}}(?!\p{{Nd}})){_INSIDE}*+)*+"
)
_UNIT = regex.compile(rf"{_SINGLE}{_VOICING}|{_RUN}", regex.VERSION1)
_HAN = regex.compile(r"\p{Han}")
SENTENCE_END = regex.compile(r"[\n\r。！？；…]++|[.!?]++(?=\s|$)", regex.VERSION1)
"""Line ends, and the sentence marks of both languages; a Latin mark only before white space."""


def units(text: str) -> list[str]:
    """Split text into the pieces that count as words, as written, in order (time linear in the text)."""
    return _UNIT.findall(text)


def count_words(text: str) -> int:
    """Count words: a CJK character is one, a run of letters or digits is one, all else is none.

    Examples (each is tested):
        The quick brown fox -> 4    春眠不觉晓 -> 5              (punctuation, symbols, emoji) -> 0
        don't, o’clock      -> 1 each: an apostrophe inside a run does not end it
        well-known          -> 2    a hyphen ends a run, as does any other sign
        e.g.                -> 2    a full stop between letters ends a run
        3.14, 2,000         -> 1 each: decimal points and thousands commas do not end a run of digits
        1,2,3               -> 3    these commas separate no thousands
        3rd, H2O            -> 1 each: letters and digits may follow each other
        ひらがな            -> 4    kana count one each; コーヒー -> 4 with its long sound marks
        한국어 글쓰기       -> 2    a run of Hangul is one
        Привет, мир         -> 2    so is a run of Cyrillic, Greek, Arabic, …
        déjà vu             -> 2    accents belong to their letter, precomposed or combining
        GPT-4模型           -> 4    GPT, 4, 模, 型
        1.5万字             -> 3    1.5, 万, 字

    Scripts without spaces other than these (Thai, Lao, Khmer, Burmese) count one a run: use it with care there.
    """
    return sum(1 for _ in _UNIT.finditer(text))


def detect_language(text: str) -> Literal["en", "zh"]:
    """Return "zh" where the text holds a Chinese character, else "en" (the rule that selects the template)."""
    return "zh" if _HAN.search(text) else "en"


def half_character(text: str) -> int | None:
    """Return the place, from 1, of the first half of a surrogate pair; None where there is none.

    JSON can hold one, such as an emoji that was cut in two; no file can, since it has no form in UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start + 1
    return None


def ngrams(pieces: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield the n-grams of a sequence in order; none where it is shorter than n."""
    return zip(*(pieces[i:] for i in range(n)), strict=False)


def distinct_n(text: str, n: int) -> float:
    """Return the number of different n-grams over the number of n-grams, in (0, 1], letter case aside.

    Li et al. 2016 (arXiv 1510.03055), over the units of `units`. A text without a single n-gram repeats nothing: 1.0.
    """
    if n < 1:
        raise ValueError(f"distinct_n: n={n} must be at least 1")
    pieces = units(text.casefold())
    total = len(pieces) - n + 1
    return len(set(ngrams(pieces, n))) / total if total > 0 else 1.0


def sentences(text: str) -> list[str]:
    """Split text at line ends and at the sentence marks of both languages; marks and empty pieces are left out.

    A Latin mark ends a sentence only before white space, so that "3.14" stays whole.
    """
    return [piece.strip() for piece in SENTENCE_END.split(text) if piece.strip()]
