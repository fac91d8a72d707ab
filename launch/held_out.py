"""Asks the learner how well its present weights predict the held-out samples of a supervised stage."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from learners.group import LearnerGroup
from lwz_ray.config import Config
from lwz_ray.perplexity import HeldOutScores, compare, measure, nll_of, scores_of
from lwz_ray.records import TokenFacts, TrainSample
from lwz_ray.supervised import SupervisedBatches

ROWS_PER_CALL = 16
"""Packed rows of each rank between two looks at the clock."""


class HeldOut:
    """The held-out samples of a stage, at least one, and what weights say of them."""

    def __init__(self, config: Config, batches: SupervisedBatches) -> None:
        self._config, self._names = config, batches.names
        self._samples, self._texts = list(batches.held_out), batches.held_out_texts

    async def score(self, learner: LearnerGroup) -> HeldOutScores:
        """Return the scores under the present weights, in the order of the samples."""
        facts: list[TokenFacts] = []
        room = self._config.learners
        limit = ROWS_PER_CALL * room.microbatch_tokens * room.ranks // room.sequence_parallel
        for call in _calls(self._samples, limit):
            facts += await learner.annotate(call)
        return self.scores(nll_of(self._samples, facts))

    def scores(self, nll: np.ndarray) -> HeldOutScores:
        """Return the scores whose `nll` was kept."""
        return scores_of(self._samples, self._texts, nll)

    def measure(self, scores: HeldOutScores) -> dict[str, Any]:
        """Return every measure of `lwz_ray.perplexity`."""
        return measure(scores, self._names, self._config.eval.bootstrap_resamples, self._config.seed)

    def compare(self, before: HeldOutScores, after: HeldOutScores) -> dict[str, Any]:
        """Return after - before with intervals."""
        return compare(before, after, self._names, self._config.eval.bootstrap_resamples, self._config.seed)

    async def numbers(self, learner: LearnerGroup) -> dict[str, float]:
        """Return `validation/what` of the present weights, for one line of metrics."""
        scores = await self.score(learner)
        loss = float(scores.nll.sum() / scores.tokens.sum())
        found = {"validation/loss": loss, "validation/perplexity": math.exp(loss)}
        for i, name in enumerate(self._names):
            of_source = scores.source_of == i
            if tokens := scores.tokens[of_source].sum():
                found[f"validation/{name}_loss"] = float(scores.nll[of_source].sum() / tokens)
        return found


def _calls(samples: Sequence[TrainSample], limit: int) -> list[list[TrainSample]]:
    """Return the samples in order, in lists of at most `limit` tokens, or of one sample."""
    out: list[list[TrainSample]] = []
    room = 0
    for sample in samples:
        if not out or sample.num_tokens > room:
            out.append([])
            room = limit
        out[-1].append(sample)
        room -= sample.num_tokens
    return out
