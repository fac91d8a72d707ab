"""Fall out of the language: some sentences or phrases in another one."""

import numpy as np

from lwz_ray.degradations.inventory import PHRASES, SENTENCES
from lwz_ray.degradations.passages import WORD, Passages, split_passages
from lwz_ray.text import count_words

WHOLE_SENTENCES = 0.5
"""Share of the texts in which whole sentences are foreign; in the others phrases inside sentences are."""
_FOR_CHINESE = ("en",)


def mix(text: str, rng: np.random.Generator) -> str | None:
    """Return the text with sentences or phrases of one other language in the place of its own; None for no sentence.

    One sentence up to half of them, or one phrase in each of up to half of them; the number of sentences stays.
    """
    passages = split_passages(text)
    n = len(passages)
    if n == 0:
        return None
    languages = _FOR_CHINESE if passages.language == "zh" else tuple(k for k in SENTENCES if k != "en")
    language = languages[int(rng.integers(len(languages)))]
    num = int(rng.integers(1, max(1, (n + 1) // 2) + 1))
    places = sorted(int(i) for i in rng.permutation(n)[:num])
    sentences = list(passages.sentences)
    whole = rng.random() < WHOLE_SENTENCES
    for place in places:
        if whole:
            sentences[place] = _foreign(language, passages.words[place], rng)
        else:
            phrases = PHRASES[language]
            sentences[place] = _with_phrase(sentences[place], phrases[int(rng.integers(len(phrases)))], passages, rng)
    mixed = passages.assembled(sentences)
    return None if mixed == passages.text else mixed


def _foreign(language: str, num_words: int, rng: np.random.Generator) -> str:
    """Return one to three sentences of about as many words as the one that they replace."""
    inventory = SENTENCES[language]
    drawn = [inventory[int(i)] for i in rng.permutation(len(inventory))[:3]]
    lengths = np.cumsum([count_words(s) for s in drawn])
    used = int(np.abs(lengths - num_words).argmin()) + 1
    return ("" if language == "zh" else " ").join(drawn[:used])


def _with_phrase(sentence: str, phrase: str, passages: Passages, rng: np.random.Generator) -> str:
    """Return the sentence with the phrase in the place of as many of its words."""
    words = list(WORD.finditer(sentence))
    if not words:
        return sentence
    num = min(len(words), count_words(phrase))
    first = int(rng.integers(len(words) - num + 1))
    spaced = f" {phrase} " if passages.language == "zh" else phrase
    return sentence[: words[first].start()] + spaced + sentence[words[first + num - 1].end() :]
