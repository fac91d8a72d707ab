"""What `stage=generate` says of its texts: words, form, how they ended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lwz_ray.records import Prompt
from lwz_ray.texts import FINISH_REASONS, WrittenText
from rewards.repetition import repetition


def text_account(prompts: Sequence[Prompt], texts: Sequence[WrittenText], ngram: int) -> dict[str, Any]:
    """Return the account of all texts, and of those of each language under `by_language`.

    prompts: of all texts, for the ranges that they ask for. ngram: as in `rewards.format.repetition_ngram`. A number
    that no text has is null.
    """
    ranges = {prompt.prompt_id: prompt.length_range for prompt in prompts}
    languages = sorted({text.language for text in texts})
    by_language = {name: _account([t for t in texts if t.language == name], ranges, ngram) for name in languages}
    return {**_account(texts, ranges, ngram), "by_language": by_language}


def _account(texts: Sequence[WrittenText], ranges: Mapping[str, tuple[int, int] | None], ngram: int) -> dict[str, Any]:
    ended = Counter(text.finish_reason for text in texts)
    ranged = [(text.num_words, asked) for text in texts if (asked := ranges[text.prompt_id]) is not None]
    plans = [text.num_think_tokens for text in texts if text.think is not None]
    return {
        "prompts": len({text.prompt_id for text in texts}),
        "texts": len(texts),
        "words": spread([text.num_words for text in texts]),
        "tokens": spread([text.num_tokens for text in texts]),
        "with_plan": len(plans),
        "think_tokens": spread(plans),
        "asked_for_length": len(ranged),
        "in_range": float(np.mean([low <= n <= high for n, (low, high) in ranged])) if ranged else None,
        "well_formed": float(np.mean([text.well_formed for text in texts])) if texts else None,
        "without_answer": sum(not text.answer for text in texts),
        "repetition": float(np.mean([repetition(text.answer, ngram) for text in texts])) if texts else None,
        "finish_reasons": {reason: ended[reason] for reason in FINISH_REASONS},
    }


def spread(values: Sequence[int]) -> dict[str, float] | None:
    """Return mean, median and the 10% and 90% points; None where there are no values."""
    if not values:
        return None
    low, median, high = np.percentile(values, [10, 50, 90])
    return {"mean": float(np.mean(values)), "median": float(median), "p10": float(low), "p90": float(high)}
