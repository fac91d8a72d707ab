"""LongBench-Write (Bai et al. 2024, arXiv 2408.07055): S_L for length, S_Q for quality, both from 0 to 100."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lwz_ray.benchmarks.means import means_of, request_means
from lwz_ray.benchmarks.records import Benchmark, QualityVerdict, Scores
from lwz_ray.text import count_words
from lwz_ray.texts import WrittenText

DIMENSIONS = ("relevance", "accuracy", "coherence", "clarity", "breadth_and_depth", "reading_experience")
"""What a judge scores from 1 to 5."""
_BUCKETS = ((500, "below 500"), (2000, "500 to 1,999"), (4000, "2,000 to 3,999"))
_LAST_BUCKET = "4,000 and more"
# `re`, not `regex`: the two differ in whether a combining accent belongs to a word.
_PUBLISHED_UNIT = re.compile(r"[\u4e00-\u9fff]|(?<!\w)[A-Za-z]+(?!\w)")


def length_score(required_words: int, written_words: int) -> float:
    """Return S_L of one text, 0 to 100.

    With x words required and y written: 100 * max(0, 1 - (y / x - 1) / 3) where y > x, else
    100 * max(0, 1 - (x / y - 1) / 2). It is 100 at y = x, 0 from y = 4x on and up to y = x / 3. Nothing written
    scores 0, where the formula itself would divide by zero.
    """
    if required_words < 1 or written_words < 0:
        raise ValueError(f"{required_words} words required, {written_words} written: needs >= 1 and >= 0")
    if written_words == 0:
        return 0.0
    if written_words > required_words:
        return 100.0 * max(0.0, 1.0 - (written_words / required_words - 1.0) / 3.0)
    return 100.0 * max(0.0, 1.0 - (required_words / written_words - 1.0) / 2.0)


def quality_score(scores: Mapping[str, int]) -> float:
    """Return S_Q of one text, 0 to 100: the mean over the six dimensions of (score - 1) * 25.

    Raises ValueError where a dimension is missing or its score lies outside of 1 to 5: a text without all six has none.
    """
    if set(scores) != set(DIMENSIONS):
        raise ValueError(f"S_Q needs exactly {', '.join(DIMENSIONS)}; got {', '.join(sorted(scores)) or 'nothing'}")
    wrong = {name: score for name, score in scores.items() if not 1 <= score <= 5}
    if wrong:
        raise ValueError(f"scores outside of 1 to 5: {wrong}")
    return math.fsum((scores[name] - 1) * 25.0 for name in DIMENSIONS) / len(DIMENSIONS)


def published_words(text: str) -> int:
    """Count words as the benchmark's authors do: a character of U+4E00 to U+9FFF is one, a run of A to Z is one.

    The run must stand between characters that are no letters, digits or underscores. That is where it differs from
    `lwz_ray.text.count_words`: numbers, other alphabets and kana count nothing here, "café" and "GPT模型" lose their
    Latin part, "don't" is two, and rare Chinese characters outside of the block count nothing.
    """
    return sum(1 for _ in _PUBLISHED_UNIT.finditer(text))


def length_bucket(required_words: int) -> str:
    """Return which of the benchmark's four ranges of required words a request belongs to."""
    return next((name for below, name in _BUCKETS if required_words < below), _LAST_BUCKET)


def score_length(benchmark: Benchmark, texts: Sequence[WrittenText], resamples: int, seed: int) -> Scores:
    """Return S_L of texts to the benchmark's requests, over all and by length bucket, language and type.

    Needs no judge. A request's number is the mean over its samples. `s_l` counts words by our rule,
    `s_l_published` by the authors'; `counters_differ` says for how many texts the two counts are not the same. Every
    request is in, however long: one that no model can reach scores what its text is worth.
    """
    requests, places = benchmark.requests, benchmark.positions
    at = [places[text.prompt_id] for text in texts]
    required = [_required(benchmark, place) for place in at]
    ours = [count_words(text.answer) for text in texts]
    theirs = [published_words(text.answer) for text in texts]
    per_request = {
        name: request_means(len(requests), at, [length_score(x, y) for x, y in zip(required, counts, strict=True)])
        for name, counts in (("s_l", ours), ("s_l_published", theirs))
    }
    overall: dict[str, Any] = {**means_of(per_request, _labels(benchmark), resamples, seed)}
    overall["counters_differ"] = sum(a != b for a, b in zip(ours, theirs, strict=True))
    return Scores(per_request, overall)


def score_quality(benchmark: Benchmark, verdicts: Sequence[QualityVerdict], resamples: int, seed: int) -> Scores:
    """Return S_Q of judged texts, over all and by length bucket, language and type, and each dimension's mean.

    `dimension` holds (score - 1) * 25 by dimension. A text without a verdict is in no mean: `num_judged` counts texts.
    """
    places = benchmark.positions
    at = [places[verdict.request_id] for verdict in verdicts]
    num = len(benchmark.requests)
    per_request = {"s_q": request_means(num, at, [quality_score(verdict.scores) for verdict in verdicts])}
    for name in DIMENSIONS:
        values = [(verdict.scores[name] - 1) * 25.0 for verdict in verdicts]
        per_request[f"s_q_{name}"] = request_means(num, at, values)
    means = means_of(per_request, _labels(benchmark), resamples, seed)
    overall: dict[str, Any] = {"s_q": means["s_q"]}
    overall["dimension"] = {name: means[f"s_q_{name}"]["all"] for name in DIMENSIONS}
    overall["num_judged"] = len(verdicts)
    return Scores(per_request, overall)


def score_both(benchmark: Benchmark, length: Scores, quality: Scores, resamples: int, seed: int) -> Scores:
    """Return the benchmark's overall score, (S_L + S_Q) / 2, over requests that have both.

    The authors take it from the two means; with every text judged that is the same number.
    """
    values = (length.per_request["s_l"] + quality.per_request["s_q"]) / 2
    return Scores({"s": values}, {**means_of({"s": values}, _labels(benchmark), resamples, seed)})


def out_of_reach(benchmark: Benchmark, texts: Sequence[WrittenText], max_tokens: int) -> dict[str, Any]:
    """Return how many requests ask for more words than fit into `max_tokens` tokens of a completion.

    Words per token are those of the texts that have an answer, by language; where a language has none, nothing is
    known of its requests. Returns `num_requests`, `max_words` by language and `num_cut`, the texts that ended at the
    token limit. Scores leave none of these requests out.
    """
    by_language: dict[str, float] = {}
    for language in dict.fromkeys(request.language for request in benchmark.requests):
        mine = [text for text in texts if text.language == language and text.num_words > 0]
        tokens = sum(text.num_tokens - text.num_think_tokens for text in mine)
        words = sum(text.num_words for text in mine)
        if tokens > 0:
            by_language[language] = max_tokens * words / tokens
    beyond = [
        request
        for i, request in enumerate(benchmark.requests)
        if request.language in by_language and _required(benchmark, i) > by_language[request.language]
    ]
    return {
        "num_requests": len(beyond),
        "max_words": {language: math.floor(words) for language, words in by_language.items()},
        "num_cut": sum(text.finish_reason == "length" for text in texts),
    }


def _required(benchmark: Benchmark, place: int) -> int:
    request = benchmark.requests[place]
    if request.required_words is None:
        raise ValueError(f"request {request.request_id} of {benchmark.name} has no required length: S_L needs one")
    return request.required_words


def _labels(benchmark: Benchmark) -> dict[str, list[str]]:
    return {
        "length": [length_bucket(_required(benchmark, i)) for i in range(len(benchmark.requests))],
        "language": [request.language for request in benchmark.requests],
        "type": [request.labels["type"] for request in benchmark.requests],
    }
