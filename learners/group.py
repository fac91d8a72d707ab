"""The learner group seen from the driver: one call a step, spread over the ranks, with a timeout on every wait."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import numpy as np

from lwz_ray.errors import WaitTimeoutError
from lwz_ray.packing import split_over_ranks
from lwz_ray.preferences import EncodedPair, PairBatch, split_pairs_over_ranks
from lwz_ray.records import StepResult

Pack = Callable[[Sequence[Any], int, int], list[list[Any]]]
"""(items of one optimizer batch, token budget, ranks) -> each rank's microbatches, as many on every rank."""

PAIRS_PER_CALL = 512
"""Held-out pairs between two looks at the clock."""


class RankCalls(Protocol):
    """The calls of one rank; each returns an awaitable at once."""

    def train(self, minibatches: list[list[Any]]) -> Awaitable[StepResult]: ...

    def predict(self, microbatches: list[PairBatch]) -> Awaitable[list[np.ndarray]]: ...

    def save(self, folder: str) -> Awaitable[None]: ...

    def load(self, folder: str) -> Awaitable[None]: ...

    def export(self, folder: str) -> Awaitable[None]: ...


class LearnerGroup:
    """Implements `Learner` over N ranks."""

    def __init__(
        self, ranks: Sequence[RankCalls], microbatch_tokens: int, timeout_s: float, pack: Pack = split_over_ranks
    ) -> None:
        """pack: the objective's (policy: `split_over_ranks`, preference: `split_pairs_over_ranks`)."""
        self._ranks = list(ranks)
        self._pack = pack
        self._budget = microbatch_tokens
        self._timeout_s = timeout_s

    async def train(self, minibatches: Sequence[Sequence[Any]]) -> StepResult:
        """Pack and balance each minibatch over the ranks and train on it; rank 0's global metrics are returned."""
        plans = [self._pack(items, self._budget, len(self._ranks)) for items in minibatches]
        calls = [rank.train([plan[r] for plan in plans]) for r, rank in enumerate(self._ranks)]
        results = await self._all(calls, "a training step")
        metrics = dict(results[0].metrics)
        metrics["train/microbatches"] = float(sum(len(plan[0]) for plan in plans) * len(self._ranks))
        return StepResult(metrics, results[0].optimizer_steps, results[0].skipped, results[0].num_trained_tokens)

    async def score(self, pairs: Sequence[EncodedPair]) -> list[tuple[float, float]]:
        """Return (score of chosen, score of rejected) in the order of the pairs, under the present weights."""
        out = [(math.nan, math.nan)] * len(pairs)
        for first in range(0, len(pairs), PAIRS_PER_CALL):
            plan = split_pairs_over_ranks(pairs[first : first + PAIRS_PER_CALL], self._budget, len(self._ranks))
            calls = [rank.predict(rows) for rank, rows in zip(self._ranks, plan, strict=True)]
            results = await self._all(calls, f"scores of held-out pairs {first} and on")
            for rows, scores in zip(plan, results, strict=True):
                for row, values in zip(rows, scores, strict=True):
                    for index, chosen, rejected in zip(row.pair_index, row.chosen, row.rejected, strict=True):
                        out[first + int(index)] = (float(values[chosen]), float(values[rejected]))
        return out

    async def save(self, folder: str) -> None:
        await self._all([rank.save(folder) for rank in self._ranks], f"a checkpoint in {folder}")

    async def load(self, folder: str) -> None:
        await self._all([rank.load(folder) for rank in self._ranks], f"a checkpoint to load from {folder}")

    async def export(self, folder: str) -> None:
        await self._all([rank.export(folder) for rank in self._ranks], f"an export to {folder}")

    async def _all(self, calls: Sequence[Awaitable[Any]], what: str) -> list[Any]:
        tasks = [asyncio.ensure_future(c) for c in calls]
        done, waiting = await asyncio.wait(tasks, timeout=self._timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if waiting:
            late = [i for i, t in enumerate(tasks) if t in waiting]
            raise WaitTimeoutError(f"{what} on learner ranks {late}", self._timeout_s)
        return [t.result() for t in tasks]
