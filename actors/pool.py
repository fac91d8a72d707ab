"""Rollouts over several workers: each group goes to the worker with the fewest open ones."""

import asyncio
import contextlib
from collections.abc import Sequence

from actors.streams import CompletionStream, StreamCall
from lwz_ray.errors import InfrastructureError, WaitTimeoutError
from lwz_ray.records import Completion, RolloutRequest

MARGIN_S = 30.0
"""A worker times out by itself; this long after it, the worker is taken for gone."""


class RolloutPool:
    """Implements `Rollouts` over the streams of N workers (Ray handles or in-process)."""

    def __init__(self, workers: Sequence[StreamCall], timeout_s: float) -> None:
        """timeout_s: for one group, from asking to its last sample, queueing in the engine included."""
        self._workers = list(workers)
        self._open = [0] * len(self._workers)
        self._timeout_s = timeout_s

    async def stream(self, request: RolloutRequest) -> CompletionStream:
        """Yield the group's samples as they end.

        Raises WaitTimeoutError naming the replica, and InfrastructureError where its stream is not one completion for
        each index.
        """
        replica = self._open.index(min(self._open))
        limit_s = self._timeout_s + MARGIN_S
        deadline = asyncio.get_running_loop().time() + limit_s
        missing = set(range(request.num_samples))
        self._open[replica] += 1
        try:
            async with contextlib.aclosing(self._workers[replica](request, self._timeout_s)) as stream:
                while (item := await _next(stream, deadline, limit_s, replica)) is not None:
                    if item[0] not in missing:
                        raise InfrastructureError(f"rollout replica {replica} sent sample {item[0]} unasked or twice")
                    missing.remove(item[0])
                    yield item
        finally:
            self._open[replica] -= 1
        if missing:
            raise InfrastructureError(
                f"rollout replica {replica} ended its stream without {len(missing)} of {request.num_samples} samples"
            )


async def _next(
    stream: CompletionStream, deadline: float, limit_s: float, replica: int
) -> tuple[int, Completion] | None:
    """Return the stream's next item, or None at its end."""
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(stream, None)
    except TimeoutError:
        raise WaitTimeoutError(f"rollout replica {replica} to answer", limit_s) from None
