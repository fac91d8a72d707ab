"""How much of a text stands in it word for word more than once, measured alike in Chinese and English."""

from dataclasses import dataclass

from lwz_ray.text import count_words, ngrams, sentences, units

REFRAIN_WORDS = 16
"""A line of more words (Chinese: characters) is no refrain; a line of verse is shorter, a sentence of prose longer."""


@dataclass(frozen=True, slots=True)
class RepetitionScores:
    """Shares of a text that were written before in it, each in [0, 1], returning refrains set aside."""

    ngram: float
    """N-grams that occurred earlier: near-copies that keep their phrases."""
    sentence: float
    """Words in whole sentences that occurred earlier: loops shorter than an n-gram."""
    paragraph: float
    """Words in whole paragraphs that occurred earlier."""
    semantic: float
    """Words in passages that an earlier passage resembles; 0 where the config measures none."""
    refrain: float
    """Share of the whole text that was set aside as returning refrains."""

    @property
    def combined(self) -> float:
        """The largest share: the measures see the same copies in different ways, so a sum would count them again."""
        return max(self.ngram, self.sentence, self.paragraph, self.semantic)


def repetition(text: str, ngram: int) -> float:
    """Return the largest exact share of a text that was written before in the same text, in [0, 1].

    Of `repeated_ngrams`, `repeated_sentences` and `repeated_paragraphs`. A text of fewer than `ngram` words gives 0.
    """
    return max(repeated_ngrams(text, ngram), repeated_sentences(text, ngram), repeated_paragraphs(text, ngram))


def repeated_ngrams(text: str, ngram: int) -> float:
    """Return the share of n-grams (words; Chinese: characters) that occurred earlier, letter case aside.

    One pass over the text; a text of fewer than `ngram` words has none and gives 0.
    """
    if ngram < 1:
        raise ValueError(f"repetition: ngram={ngram} must be at least 1")
    pieces = units(text.casefold())
    total = len(pieces) - ngram + 1
    return 1.0 - len(set(ngrams(pieces, ngram))) / total if total > 0 else 0.0


def repeated_sentences(text: str, min_words: int) -> float:
    """Return the share of words in sentences that occurred earlier, letter case and punctuation aside.

    0 for a text of fewer than `min_words` words. One pass over the text.
    """
    return _repeated_pieces(sentences(text), min_words)


def repeated_paragraphs(text: str, min_words: int) -> float:
    """Return the share of words in paragraphs (text between line ends) that occurred earlier, as above."""
    return _repeated_pieces(text.splitlines(), min_words)


def set_aside_refrains(text: str, free: float) -> tuple[str, float]:
    """Return the text without its returning refrains, and their share of its words.

    A refrain is a line of its own of at most `REFRAIN_WORDS` words that occurred earlier word for word, letter case and
    punctuation aside; its first occurrence stays. At most `free` of the text's words are set aside, in the order
    of the text: a loop is longer than that, and what is over it counts as repetition.
    """
    lines = text.splitlines()
    words = [units(line.casefold()) for line in lines]
    total = sum(map(len, words))
    seen: set[tuple[str, ...]] = set()
    kept: list[str] = []
    aside = 0
    for line, pieces in zip(lines, words, strict=True):
        key, n = tuple(pieces), len(pieces)
        if 0 < n <= REFRAIN_WORDS and key in seen and aside + n <= free * total:
            aside += n
            continue
        seen.add(key)
        kept.append(line)
    return "\n".join(kept), aside / total if total else 0.0


def _repeated_pieces(pieces: list[str], min_words: int) -> float:
    """Return the share of words in pieces whose words occurred earlier as one piece."""
    seen: set[tuple[str, ...]] = set()
    num_repeated = num_words = 0
    for piece in pieces:
        key = tuple(units(piece.casefold()))
        num_words += len(key)
        if key in seen:
            num_repeated += len(key)
        seen.add(key)
    return num_repeated / num_words if num_words >= min_words else 0.0


def share_of_words(pieces: list[str], marked: list[bool]) -> float:
    """Return the share of words in the pieces that are marked; 0 where there are no words."""
    counts = [count_words(piece) for piece in pieces]
    total = sum(counts)
    return sum(n for n, mark in zip(counts, marked, strict=True) if mark) / total if total else 0.0
