"""What texts are like beyond a benchmark's own scores: repetition, variety, length, plan, degeneration."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lwz_ray.benchmarks.means import means_of, request_means
from lwz_ray.benchmarks.records import Benchmark, Scores
from lwz_ray.text import count_words, distinct_n
from lwz_ray.texts import WrittenText

DISTINCT = (1, 2, 4)
"""N-grams whose distinct share is measured."""
MEASURES = (
    "num_words",
    "length_ratio",
    "length_error",
    "repetition",
    *(f"distinct_{n}" for n in DISTINCT),
    "think_tokens",
    "degenerated",
    "truncated",
    "well_formed",
    "empty",
)
"""Names of what `measure` finds, in the order of reports."""


def measure(
    benchmark: Benchmark,
    texts: Sequence[WrittenText],
    repetition: Callable[[str], float],
    degeneration_repetition: float,
    resamples: int,
    seed: int,
) -> Scores:
    """Return the measures of texts to the benchmark's requests, over all and by language, with intervals.

    num_words              of the answer
    length_ratio           words written over words required, where the request says how many
    length_error           |length_ratio - 1|: 0.1 is ten percent off
    repetition             share of the text that stands in it more than once, as `repetition` measures it
    distinct_1, _2, _4     different n-grams over n-grams (Li et al. 2016); longer texts have lower ones
    think_tokens           of the plan, over texts that have one
    degenerated            share of texts whose repetition is at least `degeneration_repetition`, or that the engine
                           stopped for looping
    truncated              share of texts that ended at the token limit
    well_formed, empty     shares of texts in the format asked for, and of those without an answer

    Repetition and variety are those of the answer; of everything that was written where there is no answer: a loop
    before the answer is a loop. A text without a word has neither. A request's number is the mean over its samples.
    """
    places = benchmark.positions
    at = [places[text.prompt_id] for text in texts]
    rows = [
        _numbers(text, benchmark.requests[place].required_words, repetition, degeneration_repetition)
        for text, place in zip(texts, at, strict=True)
    ]
    num = len(benchmark.requests)
    per_request = {name: request_means(num, at, [row[name] for row in rows]) for name in MEASURES}
    labels = {"language": [request.language for request in benchmark.requests]}
    overall: dict[str, Any] = {**means_of(per_request, labels, resamples, seed)}
    return Scores(per_request, overall | {"num_texts": len(texts)})


def _numbers(
    text: WrittenText, required: int | None, repetition: Callable[[str], float], degeneration_repetition: float
) -> dict[str, float]:
    """Return the measures of one text by name; NaN where it has none."""
    words = count_words(text.answer)
    written = text.answer if words else text.completion
    silent = count_words(written) == 0
    repeated = math.nan if silent else repetition(written)
    ratio = math.nan if required is None else words / required
    return {
        "num_words": float(words),
        "length_ratio": ratio,
        "length_error": abs(ratio - 1.0),
        "repetition": repeated,
        **{f"distinct_{n}": math.nan if silent else distinct_n(written, n) for n in DISTINCT},
        "think_tokens": math.nan if text.think is None else float(text.num_think_tokens),
        "degenerated": float(text.finish_reason == "repetition" or repeated >= degeneration_repetition),
        "truncated": float(text.finish_reason == "length"),
        "well_formed": float(text.well_formed),
        "empty": float(words == 0),
    }
