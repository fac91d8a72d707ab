"""The reward components behind one protocol: length and format, the reward model, the judge, a user's function."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lwz_ray.config import RewardsConfig
from lwz_ray.errors import InfrastructureError, RewardFailure
from lwz_ray.records import Prompt, Sample
from lwz_ray.text import count_words, distinct_n
from rewards.format import format_reward
from rewards.length import l_max_for, length_reward
from rewards.pool import RewardPool
from rewards.repetition_meter import RepetitionMeter

Scope = Literal["sample", "group"]


@dataclass(frozen=True, slots=True)
class Score:
    """What one component says of one sample."""

    values: dict[str, float | RewardFailure]
    """Component -> reward; empty where it abstains."""
    measures: dict[str, float] = field(default_factory=dict)
    """Facts that are no rewards."""


class Component(Protocol):
    """Scores samples of one prompt; `scope` says whether one at a time or the whole group in one call."""

    @property
    def rewards(self) -> tuple[str, ...]:
        """Say what it scores, by the names that the config weighs."""
        ...

    @property
    def scope(self) -> Scope: ...

    async def score(self, prompt: Prompt, samples: Sequence[Sample]) -> list[Score]:
        """Return one score a sample, in order; raises InfrastructureError or UserError."""
        ...


class AnswerScorer(Protocol):
    """What the judge and a user's function have in common."""

    scope: Scope

    async def score(self, prompt: Prompt, answers: Sequence[str]) -> list[float | RewardFailure]: ...


class TextRules:
    """Length and format with the measures they rest on: no model, except where repetition is measured by embeddings.

    A sample that the engine ended because it looped is degenerate: both rewards are 0 (ours; the paper has no such
    samples).
    """

    rewards = ("length", "format")
    scope: Scope = "sample"

    def __init__(self, config: RewardsConfig, meter: RepetitionMeter) -> None:
        self._config = config
        self._meter = meter

    async def score(self, prompt: Prompt, samples: Sequence[Sample]) -> list[Score]:
        """Measure in a thread: a long text takes a while, and other groups go on meanwhile."""
        return [await asyncio.to_thread(self._score, prompt, sample) for sample in samples]

    def _score(self, prompt: Prompt, sample: Sample) -> Score:
        answer = sample.parsed.answer or ""
        num_words = count_words(answer)
        repeated = self._meter.measure(answer, prompt.language)
        degenerate = sample.completion.finish_reason == "repetition"
        structure = format_reward(sample.parsed, repeated.combined, self._config.format)
        values: dict[str, float | RewardFailure] = {"format": 0.0 if degenerate else structure}
        length = self._length(prompt, num_words)
        if length is not None:
            values["length"] = 0.0 if degenerate and isinstance(length, float) else length
        measures = {
            "repetition": repeated.combined,
            "repetition_semantic": repeated.semantic,
            "distinct_2": distinct_n(answer, 2),
            "num_words": float(num_words),
            "well_formed": float(sample.parsed.well_formed),
            "segments_found": sample.parsed.segments_found,
        }
        return Score(values, measures)

    def _length(self, prompt: Prompt, num_words: int) -> float | RewardFailure | None:
        """Score the length; None abstains. The other ways to treat a missing range end before a prompt gets here."""
        length = self._config.length
        if prompt.length_range is None:
            if length.on_missing_range == "abstain":
                return None
            return RewardFailure("length", f"prompt {prompt.prompt_id} has no length range", "data")
        low, high = prompt.length_range
        return length_reward(num_words, low, high, l_max_for(high, length.l_max_factor, length.l_max_cap))


class WritingModel:
    """The reward model behind the pool. It sees the answer, never the plan; without an answer, an empty text.

    A failure would take the whole group away from training, though the policy, not the system, is what failed.
    """

    rewards = ("writing",)
    scope: Scope = "sample"

    def __init__(self, pool: RewardPool) -> None:
        self._pool = pool

    async def score(self, prompt: Prompt, samples: Sequence[Sample]) -> list[Score]:
        out = []
        for sample in samples:
            text = await self._pool.score_one(prompt.text, sample.parsed.answer or "")
            if not math.isfinite(text.value):
                raise InfrastructureError(f"the reward model's score is {text.value}")
            out.append(Score({"writing": text.value}, {"writing_coverage": text.coverage}))
        return out


class Answers:
    """A judge or a user's function as a component."""

    def __init__(self, name: str, scorer: AnswerScorer) -> None:
        self.rewards = (name,)
        self.scope: Scope = scorer.scope
        self._scorer = scorer

    async def score(self, prompt: Prompt, samples: Sequence[Sample]) -> list[Score]:
        values = await self._scorer.score(prompt, [s.parsed.answer or "" for s in samples])
        if len(values) != len(samples):
            raise InfrastructureError(f"{self.rewards[0]} gave {len(values)} scores for {len(samples)} answers")
        return [Score({self.rewards[0]: value}) for value in values]
