"""Scores a group with every reward component; what cannot be scored is a typed failure."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from lwz_ray.config import RewardsConfig
from lwz_ray.errors import InfrastructureError, RewardFailure, WaitTimeoutError
from lwz_ray.protocols import TextScorer
from lwz_ray.records import Prompt, Sample
from lwz_ray.text import count_words, distinct_n
from rewards.format import format_reward
from rewards.length import l_max_for, length_reward
from rewards.repetition import repetition


class RewardSet:
    """Length, format and, where a reward model is given, writing; implements `lwz_ray.protocols.Scorer`.

    Every component sees the answer alone, never the plan. A sample without an answer is scored as an empty one: 0
    words, and the reward model's score of the empty text (the paper is silent; a failure would take its whole group
    away from training, though the policy, not the system, is what failed).
    """

    def __init__(self, config: RewardsConfig, writing: TextScorer | None = None) -> None:
        if writing is None and config.weights.get("writing", 0.0) > 0:
            raise ValueError(
                f"rewards.weights.writing={config.weights['writing']:g} needs a reward model, none was given"
            )
        self._config = config
        self._writing = writing

    async def score(self, prompt: Prompt, samples: Sequence[Sample]) -> list[Sample]:
        """Return the samples with `num_words`, `rewards` and `measures` filled, in order.

        Measures: repetition, distinct_2, num_words, well_formed, segments_found.
        """
        answers = [s.parsed.answer or "" for s in samples]
        scored = [self._score_text(prompt, sample, answer) for sample, answer in zip(samples, answers, strict=True)]
        if self._writing is None:
            return scored
        writing = await self._score_writing(self._writing, prompt, answers)
        return [replace(s, rewards=s.rewards | {"writing": w}) for s, w in zip(scored, writing, strict=True)]

    def _score_text(self, prompt: Prompt, sample: Sample, answer: str) -> Sample:
        """Fill what needs no model."""
        num_words = count_words(answer)
        repeated = repetition(answer, self._config.format.repetition_ngram)
        rewards: dict[str, float | RewardFailure] = {
            "format": format_reward(sample.parsed, repeated, self._config.format)
        }
        length = self._score_length(prompt, num_words)
        if length is not None:
            rewards["length"] = length
        measures = {
            "repetition": repeated,
            "distinct_2": distinct_n(answer, 2),
            "num_words": float(num_words),
            "well_formed": float(sample.parsed.well_formed),
            "segments_found": sample.parsed.segments_found,
        }
        return replace(sample, num_words=num_words, rewards=rewards, measures=measures)

    def _score_length(self, prompt: Prompt, num_words: int) -> float | RewardFailure | None:
        """Score the length; None abstains. The other ways to treat a missing range end before a prompt gets here."""
        if prompt.length_range is None:
            if self._config.length.on_missing_range == "abstain":
                return None
            reason = f"prompt {prompt.prompt_id} has no length range"
            return RewardFailure("length", reason, "data")
        low, high = prompt.length_range
        return length_reward(num_words, low, high, l_max_for(high, self._config.length.l_max_factor))

    async def _score_writing(
        self, scorer: TextScorer, prompt: Prompt, answers: Sequence[str]
    ) -> list[float | RewardFailure]:
        """Ask the reward model once for the whole group, for at most `request_timeout_s`."""
        timeout_s = self._config.request_timeout_s
        try:
            scores = await asyncio.wait_for(scorer.score_texts([prompt.text] * len(answers), answers), timeout_s)
        except TimeoutError:
            what = f"the writing reward of {len(answers)} answers to prompt {prompt.prompt_id}"
            return [_failure(str(WaitTimeoutError(what, timeout_s)))] * len(answers)
        except InfrastructureError as error:
            return [_failure(str(error))] * len(answers)
        if len(scores) != len(answers):
            return [_failure(f"the reward model gave {len(scores)} scores for {len(answers)} answers")] * len(answers)
        return [s if math.isfinite(s) else _failure(f"the reward model's score is {s}") for s in scores]


def _failure(reason: str) -> RewardFailure:
    return RewardFailure("writing", reason, "infrastructure")
