"""Scores groups with every reward component while their other samples are still being written."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from lwz_ray.config import RewardsConfig
from lwz_ray.errors import RewardFailure
from lwz_ray.records import Prompt, Sample
from rewards.components import Answers, AnswerScorer, Component, Score, TextRules, WritingModel
from rewards.failures import Guard
from rewards.pool import RewardPool
from rewards.repetition_meter import RepetitionMeter


class RewardSet:
    """Length and format, and what else is given; implements `lwz_ray.protocols.Scorer`.

    Every component sees the answer alone, never the plan. Each scores by itself: a slow one delays nobody but the
    groups that wait for it, and those no longer than its deadline.
    """

    def __init__(
        self,
        config: RewardsConfig,
        writing: RewardPool | None = None,
        judge: AnswerScorer | None = None,
        function: AnswerScorer | None = None,
    ) -> None:
        components: list[Component] = [TextRules(config, RepetitionMeter(config.format, config.threads))]
        if writing is not None:
            components.append(WritingModel(writing))
        components += [Answers(n, s) for n, s in (("judge", judge), ("function", function)) if s is not None]
        known = {name for component in components for name in component.rewards}
        missing = [name for name in config.active if name not in known]
        if missing:
            raise ValueError(f"rewards.weights.{missing[0]} is above 0, but nothing was given that scores it")
        self._guards = [Guard(component, config) for component in components]

    @property
    def num_retries(self) -> int:
        """Attempts after a first one, of all components so far."""
        return sum(g.num_retries for g in self._guards)

    def open(self, prompt: Prompt, num_samples: int) -> "GroupScores":
        """Begin a group."""
        return GroupScores(self._guards, prompt, num_samples)


class GroupScores:
    """One group's scores in the making; implements `lwz_ray.protocols.GroupScoring`."""

    def __init__(self, guards: Sequence[Guard], prompt: Prompt, num_samples: int) -> None:
        self._single = [g for g in guards if g.component.scope == "sample"]
        self._whole = [g for g in guards if g.component.scope == "group"]
        self._prompt = prompt
        self._num_samples = num_samples
        self._samples: list[Sample] = []
        self._tasks: list[asyncio.Task[tuple[list[int], list[Score]]]] = []

    def add(self, sample: Sample) -> None:
        """Start the components that look at one sample; with the group's last one, those that compare."""
        if len(self._samples) >= self._num_samples:
            raise ValueError(f"prompt {self._prompt.prompt_id}: more than {self._num_samples} samples were added")
        self._samples.append(sample)
        for guard in self._single:
            self._start(guard, [sample])
        if len(self._samples) == self._num_samples:
            ordered = sorted(self._samples, key=lambda s: s.sample_index)
            for guard in self._whole:
                self._start(guard, ordered)

    async def finish(self) -> list[Sample]:
        """Return the scored samples by index. Every task ends by its component's deadline; raises what one raised."""
        if len(self._samples) != self._num_samples:
            raise ValueError(
                f"prompt {self._prompt.prompt_id}: {len(self._samples)} of {self._num_samples} samples were added"
            )
        try:
            found = await asyncio.gather(*self._tasks)
        finally:
            self.cancel()
        rewards: dict[int, dict[str, float | RewardFailure]] = {s.sample_index: {} for s in self._samples}
        measures: dict[int, dict[str, float]] = {s.sample_index: {} for s in self._samples}
        for indices, scores in found:
            for index, score in zip(indices, scores, strict=True):
                rewards[index] |= score.values
                measures[index] |= score.measures
        return [
            replace(s, rewards=rewards[s.sample_index], measures=measures[s.sample_index])
            for s in sorted(self._samples, key=lambda s: s.sample_index)
        ]

    def cancel(self) -> None:
        """Stop what is still under way."""
        for task in self._tasks:
            task.cancel()

    def _start(self, guard: Guard, samples: list[Sample]) -> None:
        self._tasks.append(asyncio.create_task(self._run(guard, samples)))

    async def _run(self, guard: Guard, samples: list[Sample]) -> tuple[list[int], list[Score]]:
        return [s.sample_index for s in samples], await guard.score(self._prompt, samples)
