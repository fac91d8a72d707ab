"""From texts and verdicts to the numbers of an evaluation, by benchmark."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lwz_ray.benchmarks import arena_write, longbench_write, writingbench
from lwz_ray.benchmarks.judging import Verdict
from lwz_ray.benchmarks.records import Benchmark, Scores
from lwz_ray.benchmarks.texts_measures import MEASURES, measure
from lwz_ray.config import Config
from lwz_ray.texts import WrittenText
from rewards.repetition import repetition

NOT_MEASURED = "not_measured"
"""Key of a score that was not taken; its value is the reason."""
JUDGED = {"longbench_write": ("s_q", "s"), "writingbench": ("overall",), "arena_write": ("arena_write", "rating")}
"""The scores of a benchmark that only a judge gives."""

_WHOLE = ("rating", "by_baseline", "out_of_reach")


@dataclass(slots=True)
class Found:
    """What an evaluation knows so far."""

    measures: dict[str, Any] = field(default_factory=dict)
    """Of the texts themselves, by name; see `lwz_ray.benchmarks.texts_measures`."""
    scores: dict[str, Any] = field(default_factory=dict)
    """The benchmark's own, by name; `{"not_measured": reason}` where there is none."""
    per_request: dict[str, np.ndarray] = field(default_factory=dict)
    """float64 [num_requests] by name, of both, the benchmark's own first."""
    judged: list[str] = field(default_factory=list)
    """Names in `per_request` that a judge gave."""

    def add(self, found: Scores, judged: bool = False) -> None:
        """Take in what a scorer of the benchmark found."""
        self.scores |= found.overall
        own = {name: values for name, values in self.per_request.items() if name not in MEASURES}
        self.per_request = {**own, **found.per_request, **self.per_request}
        if judged:
            self.judged += list(found.per_request)

    def means(self, but: Sequence[str] = ()) -> dict[str, float]:
        """Return the mean over requests by name; one that no request has is absent, and so is each of `but`."""
        known = {name: values[~np.isnan(values)] for name, values in self.per_request.items() if name not in but}
        return {name: float(values.mean()) for name, values in known.items() if values.size}


def score_texts(config: Config, benchmark: Benchmark, texts: Sequence[WrittenText], reason: str) -> Found:
    """Return what needs no judge; the judged scores are not measured, for that reason."""
    evaluate, seed = config.evaluate, config.seed
    repeated = functools.partial(repetition, ngram=config.rewards.format.repetition_ngram)
    resamples = evaluate.bootstrap_resamples
    measures = measure(benchmark, texts, repeated, evaluate.degeneration_repetition, resamples, seed)
    found = Found(measures=measures.overall, per_request=dict(measures.per_request))
    if benchmark.name == "longbench_write":
        found.add(longbench_write.score_length(benchmark, texts, resamples, seed))
        if evaluate.texts_path is None:  # another system's limit is not known
            limit = config.sampling.max_tokens
            found.scores["out_of_reach"] = longbench_write.out_of_reach(benchmark, texts, limit)
    found.scores |= {name: {NOT_MEASURED: reason} for name in JUDGED[benchmark.name]}
    return found


def score_verdicts(config: Config, benchmark: Benchmark, found: Found, verdicts: Sequence[Verdict]) -> None:
    """Add what a judge's verdicts say; at least one is needed."""
    resamples, seed = config.evaluate.bootstrap_resamples, config.seed
    given: list[Any] = list(verdicts)
    if benchmark.name == "longbench_write":
        quality = longbench_write.score_quality(benchmark, given, resamples, seed)
        length = Scores({"s_l": found.per_request["s_l"]}, {})
        found.add(quality, judged=True)
        found.add(longbench_write.score_both(benchmark, length, quality, resamples, seed), judged=True)
    elif benchmark.name == "writingbench":
        found.add(writingbench.score(benchmark, given, resamples, seed), judged=True)
    else:
        anchor, rating = anchor_of(config, benchmark), config.evaluate.anchor_rating
        found.add(arena_write.score(benchmark, given, anchor, rating, resamples, seed), judged=True)
    for name in JUDGED[benchmark.name]:
        one = found.scores[name]
        if one is None or ("all" in one and one["all"] is None):
            found.scores[name] = {NOT_MEASURED: "no pair of texts has a verdict in both orders"}


def anchor_of(config: Config, benchmark: Benchmark) -> str:
    """Return the baseline whose rating is fixed."""
    return config.evaluate.anchor or min(benchmark.baselines)


def brief(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return scores or measures over all requests only, as `summary.json` holds them: no group, no list of counts.

    Ratings, reasons and plain numbers stay as they are.
    """
    kept: dict[str, Any] = {}
    for name, found in named.items():
        if not isinstance(found, Mapping):
            kept[name] = found
        elif "all" in found:
            kept[name] = found["all"]
        elif name in _WHOLE or "mean" in found or NOT_MEASURED in found:
            kept[name] = found
    return kept
