"""Leave the topic: from some sentence on, another text's sentences."""

from collections.abc import Sequence

import numpy as np

from lwz_ray.degradations.passages import split_passages
from lwz_ray.text import count_words

DRIFT_SHARES = (0.2, 0.7)
"""Share of the sentences that stay, at least one."""


def drift(text: str, others: Sequence[str], rng: np.random.Generator) -> str | None:
    """Return the text's beginning and then sentences of other texts, about as many words as they replace.

    others: texts to other prompts, in the same language. A text that runs out is followed by the next. None where there
    is no other text or the text has one sentence.
    """
    passages = split_passages(text)
    n = len(passages)
    if n < 2 or not others:
        return None
    kept = min(n - 1, max(1, round(rng.uniform(*DRIFT_SHARES) * n)))
    wanted = sum(passages.words[kept:])
    taken: list[str] = []
    total = 0
    for index in rng.permutation(len(others)):
        donor = split_passages(others[int(index)]).sentences
        # Not its first sentence, where it has others: an opening would announce the change.
        for sentence in donor[1 if len(donor) > 1 else 0 :]:
            words = count_words(sentence)
            if taken and abs(total + words - wanted) > abs(total - wanted):
                return passages.assembled([*passages.sentences[:kept], *taken])
            taken.append(sentence)
            total += words
    return passages.assembled([*passages.sentences[:kept], *taken])
