"""Records of the benchmarks: requests, what a judge said, and scores."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lwz_ray.config_evaluate import BenchmarkName

BANDS = ("1-2", "3-4", "5-6", "7-8", "9-10")
"""Of a WritingBench criterion: what a text in each band of scores is like."""

PUBLISHED: dict[BenchmarkName, int] = {"longbench_write": 120, "writingbench": 1000, "arena_write": 100}
"""Requests of each benchmark; there are longer releases of WritingBench."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that a text is scored on, from 1 to 10."""

    name: str
    description: str
    bands: Mapping[str, str]
    """Text by band, in the order of `BANDS`."""


@dataclass(frozen=True, slots=True)
class BenchmarkRequest:
    """One request of a benchmark."""

    request_id: str
    text: str
    language: Literal["en", "zh"]
    required_words: int | None
    labels: Mapping[str, str]
    """What scores are grouped by: `type`, or `domain1` and `domain2`."""
    criteria: tuple[Criterion, ...] = ()
    requirements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """WritingBench: requirement (style, format, length) that this request has -> the criteria that are about it."""

    @property
    def digest(self) -> str:
        """Return a word that tells whether two evaluations asked the same thing and score it by the same criteria."""
        criteria = [(one.name, one.description, *one.bands.values()) for one in self.criteria]
        return _hash((self.text, str(self.required_words)), *criteria)[:16]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Requests in the order of their file."""

    name: BenchmarkName
    requests: tuple[BenchmarkRequest, ...]
    num_in_file: int
    """More than `requests` where `benchmark.num_requests` takes the first few."""
    baselines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """arena_write: model name -> request id -> its answer; each has one to every request, and may have others."""

    @property
    def num_whole(self) -> int:
        """Return how many requests the whole benchmark has: those of the file, or of the authors' where it has more."""
        return max(self.num_in_file, PUBLISHED[self.name])

    @property
    def complete(self) -> bool:
        """Say whether every request is in: scores of fewer are no scores of the benchmark."""
        return len(self.requests) == self.num_whole

    @property
    def baseline_digests(self) -> dict[str, str]:
        """Return a word for the answers of each baseline: one name may stand for two models, or two of its versions."""
        return {name: _hash(*sorted(answers.items()))[:8] for name, answers in sorted(self.baselines.items())}

    @property
    def against(self) -> str:
        """Return in words whose texts a judge compares with, empty where nobody's: other baselines, other scores."""
        named = [f"{name} ({digest})" for name, digest in self.baseline_digests.items()]
        return f" against {', '.join(named)}" if named else ""

    @property
    def positions(self) -> dict[str, int]:
        """Return the place of each request id in `requests`."""
        return {request.request_id: i for i, request in enumerate(self.requests)}


@dataclass(frozen=True, slots=True)
class QualityVerdict:
    """LongBench-Write: a judge's six scores of one text, each 1 to 5, by the names of `longbench_write.DIMENSIONS`."""

    request_id: str
    sample_index: int
    scores: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CriterionVerdict:
    """WritingBench: a judge's score of one text on one criterion, 1 to 10."""

    request_id: str
    sample_index: int
    criterion: str
    score: int


@dataclass(frozen=True, slots=True)
class Game:
    """Arena-Write: what a judge said about one text beside a baseline's, in one of the two orders."""

    request_id: str
    sample_index: int
    model: str
    baseline: str
    model_first: bool
    """The model's text stood before the baseline's."""
    score: float
    """Of the model: 1 it won, 0.5 a tie, 0 it lost."""

    def __post_init__(self) -> None:
        if self.score not in (0.0, 0.5, 1.0):
            raise ValueError(f"a game's score is 1, 0.5 or 0, not {self.score}")
        if self.model == self.baseline:
            raise ValueError(
                f"{self.model!r} cannot play against itself: a model and its baselines need different names"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What one scorer found."""

    per_request: dict[str, np.ndarray]
    """float64 [num_requests] by name, in the order of the benchmark; NaN where a request has no such number."""
    overall: dict[str, Any]
    """Means with 95% intervals and counts, as JSON's own types."""


def _hash(*rows: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(text for row in rows for text in row).encode()).hexdigest()
