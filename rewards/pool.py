"""Spreads requests for a reward model over its replicas."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError
from rewards.pairs import ClassifierScores

Replica = Callable[[Sequence[str], Sequence[str]], Awaitable[ClassifierScores]]
"""Scores prompts and texts; in a cluster a call of a Ray actor, see `rewards.remote.as_replica`."""


class RewardPool:
    """Cuts requests into batches, gives each to the replica with the fewest pairs in flight; a `TextScorer`.

    A batch that fails or is late goes to another replica once. The replica that failed is passed over for
    `request_timeout_s`, as long as others are left: a dead one answers at once and would draw every batch.
    """

    def __init__(self, replicas: Sequence[Replica], batch_size: int, request_timeout_s: float) -> None:
        if not replicas or batch_size < 1 or request_timeout_s <= 0:
            raise ValueError(
                f"reward pool: {len(replicas)} replicas, batch_size={batch_size}, request_timeout_s="
                f"{request_timeout_s:g}: each must be above 0"
            )
        self._replicas = tuple(replicas)
        self._batch_size = batch_size
        self._request_timeout_s = request_timeout_s
        # Half for each of two attempts, so that the second fits into the time that a caller grants the whole.
        self._attempt_timeout_s = request_timeout_s / 2
        self._busy = [0] * len(replicas)
        self._avoid_until = [0.0] * len(replicas)
        self.num_truncated = 0
        """Answers cut to the reward model's length so far."""
        self.num_retries = 0
        """Batches that needed their second attempt so far."""

    @property
    def num_replicas(self) -> int:
        return len(self._replicas)

    async def score_texts(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Return one raw score a pair, in order; raises InfrastructureError where both attempts of a batch failed."""
        if len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} prompts and {len(texts)} texts: a pair needs one of each")
        starts = range(0, len(prompts), self._batch_size)
        batches = [(prompts[i : i + self._batch_size], texts[i : i + self._batch_size]) for i in starts]
        tasks = [asyncio.ensure_future(self._score_batch(p, t)) for p, t in batches]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            # After a failure, or when the caller stopped waiting, the other batches are of no use.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.num_truncated += sum(a.num_truncated for a in answers)
        return [value for a in answers for value in a.values]

    async def _score_batch(self, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        first = self._least_busy(range(len(self._replicas)))
        try:
            return await self._ask(first, prompts, texts)
        except InfrastructureError as error:
            self._avoid_until[first] = time.monotonic() + self._request_timeout_s
            others = [i for i in range(len(self._replicas)) if i != first]
            if not others:
                raise
            second = self._least_busy(others)
            self.num_retries += 1
            try:
                return await self._ask(second, prompts, texts)
            except InfrastructureError as again:
                self._avoid_until[second] = time.monotonic() + self._request_timeout_s
                raise InfrastructureError(f"{again}; before that, {error}") from again

    def _least_busy(self, among: Sequence[int]) -> int:
        """Return the replica with the fewest pairs in flight, those that failed lately last."""
        now = time.monotonic()
        return min(among, key=lambda i: (self._avoid_until[i] > now, self._busy[i], i))

    async def _ask(self, index: int, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        """Make one attempt; its time includes the wait in the replica's own queue."""
        name = f"reward replica {index + 1} of {len(self._replicas)}"
        self._busy[index] += len(texts)
        try:
            answer = await asyncio.wait_for(self._replicas[index](prompts, texts), self._attempt_timeout_s)
        except TimeoutError as error:
            raise WaitTimeoutError(f"{name} to score {len(texts)} answers", self._attempt_timeout_s) from error
        except UserError:
            raise  # no other replica would take it
        except Exception as error:  # whatever a replica died of is the reason that is passed on
            raise InfrastructureError(f"{name} failed: {type(error).__name__}: {_first_line(error)}") from error
        finally:
            self._busy[index] -= len(texts)
        if len(answer.values) != len(texts):
            raise InfrastructureError(f"{name} gave {len(answer.values)} scores for {len(texts)} answers")
        return answer


def _first_line(error: Exception) -> str:
    """Return the last line that says something: a remote error's text ends with the error itself."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), "no message").strip()
