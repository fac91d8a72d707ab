"""How much of a text repeats itself, measured alike in Chinese and English."""

from lwz_ray.text import count_words, ngrams, sentences, units


def repetition(text: str, ngram: int) -> float:
    """Return the share of a text that was written before in the same text, in [0, 1], letter case aside.

    The larger of two shares: n-grams that occurred earlier (`ngram` words, Chinese: characters), which sees near-copies
    that keep their phrases; and words in whole sentences that occurred earlier, which sees refrains shorter than an
    n-gram. A text of fewer than `ngram` words gives 0. Time is linear in the text.
    """
    if ngram < 1:
        raise ValueError(f"repetition: ngram={ngram} must be at least 1")
    folded = text.casefold()
    pieces = units(folded)
    total = len(pieces) - ngram + 1
    if total < 1:
        return 0.0
    repeated_ngrams = 1.0 - len(set(ngrams(pieces, ngram))) / total
    return max(repeated_ngrams, _repeated_sentences(folded))


def _repeated_sentences(text: str) -> float:
    """Return the share of words that stand in sentences that occurred earlier."""
    seen: set[str] = set()
    num_repeated = num_words = 0
    for sentence in sentences(text):
        n = count_words(sentence)
        num_words += n
        if sentence in seen:
            num_repeated += n
        seen.add(sentence)
    return num_repeated / num_words if num_words else 0.0
