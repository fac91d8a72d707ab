"""Rollouts over several workers: each group goes to the worker with the fewest open ones."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from lwz_ray.errors import WaitTimeoutError
from lwz_ray.records import Completion

Generate = Callable[[Sequence[int], int, int, float], Awaitable[list[Completion]]]


class RolloutPool:
    """Implements `Rollouts` over the `generate` calls of N workers (Ray handles or in-process)."""

    def __init__(self, workers: Sequence[Generate], timeout_s: float) -> None:
        """timeout_s: for one group, queueing in the engine included."""
        self._workers = list(workers)
        self._open = [0] * len(self._workers)
        self._timeout_s = timeout_s

    async def generate(self, prompt_token_ids: Sequence[int], num_samples: int, seed: int) -> list[Completion]:
        """Return the group's completions; raises WaitTimeoutError naming the replica."""
        replica = self._open.index(min(self._open))
        self._open[replica] += 1
        try:
            call = self._workers[replica](list(prompt_token_ids), num_samples, seed, self._timeout_s)
            # The worker times out by itself; the margin covers a worker that is gone.
            return await asyncio.wait_for(call, self._timeout_s + 30.0)
        except TimeoutError:
            raise WaitTimeoutError(f"rollout replica {replica} to answer", self._timeout_s + 30.0) from None
        finally:
            self._open[replica] -= 1
