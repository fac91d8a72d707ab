"""The learner group seen from the driver: one call a step, spread over the ranks, with a timeout on every wait."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import numpy as np

from lwz_ray.errors import LearnerLostError
from lwz_ray.packing import Microbatch, split_over_ranks
from lwz_ray.preferences import EncodedPair, PairBatch
from lwz_ray.records import StepResult, TokenFacts, TrainSample

Pack = Callable[[Sequence[Any], int, int], list[list[Any]]]
"""(items of one optimizer batch, token budget, ranks) -> each rank's microbatches, as many on every rank."""

PAIRS_PER_CALL = 512
"""Held-out pairs between two looks at the clock."""


class RankCalls(Protocol):
    """The calls of one rank; each returns an awaitable at once."""

    def train(self, minibatches: list[list[Any]]) -> Awaitable[StepResult]: ...

    def predict(self, microbatches: list[PairBatch]) -> Awaitable[list[np.ndarray]]: ...

    def annotate(self, microbatches: list[Microbatch]) -> Awaitable[list[dict[str, np.ndarray]]]: ...

    def refresh_reference(self) -> Awaitable[None]: ...

    def save(self, folder: str) -> Awaitable[None]: ...

    def finish_save(self) -> Awaitable[None]: ...

    def load(self, folder: str) -> Awaitable[None]: ...

    def export(self, folder: str) -> Awaitable[None]: ...


class LearnerGroup:
    """Implements `Learner` over N ranks."""

    def __init__(
        self,
        ranks: Sequence[RankCalls],
        microbatch_tokens: int,
        timeout_s: float,
        pack: Pack = split_over_ranks,
        sequence_parallel: int = 1,
        name: str = "learner",
    ) -> None:
        """pack: the objective's (policy: `split_over_ranks`, preference: `split_pairs_over_ranks`).

        sequence_parallel: neighbours in rank that share a row, and so get the same microbatches. name: in errors.
        """
        if len(ranks) % sequence_parallel:
            raise ValueError(f"{len(ranks)} ranks are no multiple of sequence_parallel={sequence_parallel}")
        self._ranks, self._name = list(ranks), name
        self._sharing = sequence_parallel
        self._pack = pack
        self._budget = microbatch_tokens
        self._timeout_s = timeout_s

    async def train(self, minibatches: Sequence[Sequence[Any]]) -> StepResult:
        """Pack and balance each minibatch over the ranks and train on it; rank 0's global metrics are returned."""
        plans = [self._packed(items) for items in minibatches]
        calls = [rank.train([plan[r] for plan in plans]) for r, rank in enumerate(self._ranks)]
        results = await self._all(calls, "a training step")
        metrics = dict(results[0].metrics)
        rows = sum(len(plan[0]) for plan in plans) * len(self._ranks) // self._sharing
        metrics["train/microbatches"] = float(rows)
        return StepResult(metrics, results[0].optimizer_steps, results[0].skipped, results[0].num_trained_tokens)

    async def annotate(self, samples: Sequence[TrainSample]) -> list[TokenFacts]:
        """Return what the ranks say of each sample's tokens, in the order of the samples."""
        plan = self._packed(samples)
        calls = [rank.annotate(rows) for rank, rows in zip(self._ranks, plan, strict=True)]
        results = await self._all(calls, "facts about the tokens of a batch")
        return scatter_facts(samples, self._once(plan, results))

    def _packed(self, items: Sequence[Any]) -> list[list[Any]]:
        """Return each rank's microbatches."""
        plan = self._pack(items, self._budget, len(self._ranks) // self._sharing)
        return [plan[r // self._sharing] for r in range(len(self._ranks))]

    def _once(self, plan: list[list[Any]], results: list[Any]) -> list[tuple[Any, Any]]:
        """Return (row, what was said of it) of every row once: ranks that share rows say the same."""
        return [pair for r in range(0, len(plan), self._sharing) for pair in zip(plan[r], results[r], strict=True)]

    async def refresh_reference(self) -> None:
        await self._all([rank.refresh_reference() for rank in self._ranks], "the reference to be refreshed")

    async def score(self, pairs: Sequence[EncodedPair]) -> list[tuple[float, float]]:
        """Return (score of chosen, score of rejected) in the order of the pairs, under the present weights."""
        out = [(math.nan, math.nan)] * len(pairs)
        for first in range(0, len(pairs), PAIRS_PER_CALL):
            plan = self._packed(pairs[first : first + PAIRS_PER_CALL])
            calls = [rank.predict(rows) for rank, rows in zip(self._ranks, plan, strict=True)]
            results = await self._all(calls, f"scores of held-out pairs {first} and on")
            for row, values in self._once(plan, results):
                for index, chosen, rejected in zip(row.pair_index, row.chosen, row.rejected, strict=True):
                    out[first + int(index)] = (float(values[chosen]), float(values[rejected]))
        return out

    async def save(self, folder: str) -> None:
        await self._all([rank.save(folder) for rank in self._ranks], f"a checkpoint in {folder}")

    async def finish_save(self) -> None:
        await self._all([rank.finish_save() for rank in self._ranks], "the last checkpoint to be on disk")

    async def load(self, folder: str) -> None:
        await self._all([rank.load(folder) for rank in self._ranks], f"a checkpoint to load from {folder}")

    async def export(self, folder: str) -> None:
        await self._all([rank.export(folder) for rank in self._ranks], f"an export to {folder}")

    async def _all(self, calls: Sequence[Awaitable[Any]], what: str) -> list[Any]:
        """Return every rank's answer; a rank that gives none in time is a LearnerLostError."""
        tasks = [asyncio.ensure_future(c) for c in calls]
        try:
            done, waiting = await asyncio.wait(tasks, timeout=self._timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if waiting:
                late = [i for i, t in enumerate(tasks) if t in waiting]
                raise LearnerLostError(f"waited {self._timeout_s:g} s for {what} on {self._name} ranks {late}")
            return [t.result() for t in tasks]
        finally:
            # When one rank fails the others hang in a collective; nobody asks them any more.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def scatter_facts(
    samples: Sequence[TrainSample], said: Sequence[tuple[Microbatch, dict[str, np.ndarray]]]
) -> list[TokenFacts]:
    """Return each sample's facts from those of the rows that it was packed into.

    said: (row, name -> float32 [num_trained]). A column of `TokenFacts` is 0 where nothing is trained.
    """
    columns: list[dict[str, np.ndarray]] = [{} for _ in samples]
    for row, facts in said:
        for name, values in facts.items():
            for ordinal, index in enumerate(row.sample_index):
                sample = samples[index]
                column = np.zeros(sample.num_tokens, dtype=np.float32)
                column[sample.loss_mask] = values[row.sample_of == ordinal]
                columns[index][name] = column
    return [TokenFacts(**found) for found in columns]
