"""The learner group seen from the driver: one call a step, spread over the ranks, with a timeout on every wait."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from lwz_ray.errors import WaitTimeoutError
from lwz_ray.packing import Microbatch, split_over_ranks
from lwz_ray.records import StepResult, TrainSample


class RankCalls(Protocol):
    """The calls of one rank; each returns an awaitable at once."""

    def train(self, minibatches: list[list[Microbatch]]) -> Awaitable[StepResult]: ...

    def save(self, folder: str) -> Awaitable[None]: ...

    def load(self, folder: str) -> Awaitable[None]: ...

    def export(self, folder: str) -> Awaitable[None]: ...


class LearnerGroup:
    """Implements `Learner` over N ranks."""

    def __init__(self, ranks: Sequence[RankCalls], microbatch_tokens: int, timeout_s: float) -> None:
        self._ranks = list(ranks)
        self._budget = microbatch_tokens
        self._timeout_s = timeout_s

    async def train(self, minibatches: Sequence[Sequence[TrainSample]]) -> StepResult:
        """Pack and balance each minibatch over the ranks and train on it; rank 0's global metrics are returned."""
        plans = [split_over_ranks(samples, self._budget, len(self._ranks)) for samples in minibatches]
        calls = [rank.train([plan[r] for plan in plans]) for r, rank in enumerate(self._ranks)]
        results = await self._all(calls, "a training step")
        metrics = dict(results[0].metrics)
        metrics["train/microbatches"] = float(sum(len(plan[0]) for plan in plans) * len(self._ranks))
        return StepResult(metrics, results[0].optimizer_steps, results[0].skipped, results[0].num_trained_tokens)

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
