"""The rollout worker: one engine, weight updates in flight, and a gate that keeps a dirty engine from serving."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import replace
from typing import TypeVar

from actors.engine import DirtyEngineError, Engine
from actors.load import EngineLoad
from actors.streams import CompletionStream, PieceStream
from actors.tasks import SampleTask, WorkerRequest
from lwz_ray.errors import WaitTimeoutError
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import Bucket

PAUSE_TIMEOUT_S = 60.0
"""For the engine to finish the step it is in, or to start again."""

T = TypeVar("T")


class RolloutWorker:
    """Owns one engine. New requests wait while an update runs; the engine's `update_mode` decides on those in flight.

    Where an update fails, what is in flight ends with what it has, and new requests are refused.
    """

    def __init__(self, engine: Engine, staging_candidates: tuple[str, ...], staging_bytes: int) -> None:
        self.engine = engine
        self._staging_candidates = staging_candidates
        self._staging_bytes = staging_bytes
        self._staging: StagingFolder | None = None
        self._staged: list[str] = []
        self._settled = asyncio.Event()
        """Clear while an update runs, and before the start."""
        self._dirty: str | None = None
        self._num_requests = 0

    async def start(self) -> None:
        """Build the engine; policy version 0 is the model folder's weights."""
        await self.engine.start()
        self._settled.set()

    async def stream(self, request: WorkerRequest, timeout_s: float) -> CompletionStream:
        """Yield completions as they end; waits for a running update. Raises DirtyEngineError or WaitTimeoutError.

        timeout_s: for the whole request. Waiting counts against the tasks' deadlines too.
        """
        deadline, num_ended = _now() + timeout_s, 0
        request, request_id = await self._admitted(request, timeout_s)
        async with contextlib.aclosing(self.engine.stream(request, request_id)) as stream:
            while True:
                missing = f"{len(request.tasks) - num_ended} of {len(request.tasks)} completions"
                item = await _next(stream, f"{missing} of request {request_id}", deadline, timeout_s)
                if item is None:
                    return
                num_ended += 1
                yield item

    async def pieces(self, request: WorkerRequest, timeout_s: float) -> PieceStream:
        """Yield the text of the request's only task as it is written, then its completion; waits as `stream` does."""
        deadline = _now() + timeout_s
        request, request_id = await self._admitted(request, timeout_s)
        async with contextlib.aclosing(self.engine.pieces(request, request_id)) as stream:
            while (piece := await _next(stream, f"the end of request {request_id}", deadline, timeout_s)) is not None:
                yield piece

    async def _admitted(self, request: WorkerRequest, timeout_s: float) -> tuple[WorkerRequest, str]:
        """Wait for a running update; return the request with what is left of its tasks' deadlines, and its id."""
        arrived = _now()
        await self._until_serving(timeout_s)
        self._num_requests += 1
        return _after(request, _now() - arrived), f"r{self._num_requests}"

    async def _until_serving(self, timeout_s: float) -> None:
        try:
            if not self._settled.is_set():
                await asyncio.wait_for(self._settled.wait(), timeout_s)
        except TimeoutError:
            raise WaitTimeoutError("a weight update to finish before generating", timeout_s) from None
        if self._dirty:
            raise DirtyEngineError(self._dirty)

    async def interrupt(self) -> None:
        """End what is being written with what it has, finish reason `abort`."""
        await self.engine.interrupt()

    async def heartbeat(self) -> EngineLoad:
        """Return the engine's numbers; does not return where the engine is frozen. The timeout is the caller's."""
        return await self.engine.load()

    def stage(self, bucket: Bucket) -> None:
        """Bring one bucket to this host; `update` loads what was staged. A first bucket begins a new version."""
        if bucket.header.index == 0:  # a transfer that was given up may have left some
            self._clear_staged()
        if self._staging is None:
            self._staging = StagingFolder(self._staging_candidates, self._staging_bytes)
        self._staged.append(self._staging.write(bucket))

    async def update(self, policy_version: int, header_paths: Sequence[str] | None, timeout_s: float) -> float:
        """Replace the weights; return the seconds for which new requests waited.

        header_paths: staged by someone else on this host, or None for what `stage` brought. timeout_s: for loading, and
        with `update_mode=wait` for what is in flight to end. A failure leaves the engine dirty and paused until a later
        full update succeeds.
        """
        paths = list(header_paths) if header_paths is not None else self._staged
        started = time.monotonic()
        try:
            await self.begin(policy_version, timeout_s)
            await self._guard(self.engine.load_weights(policy_version, paths), policy_version, timeout_s)
        finally:
            self._clear_staged()
        await self.end(policy_version)
        return time.monotonic() - started

    async def begin(self, policy_version: int, timeout_s: float) -> None:
        """Hold back new requests and pause; timeout_s: for those in flight to end where they are waited for."""
        self._settled.clear()
        waits = self.engine.settings.update_mode == "wait"
        await self._guard(
            self.engine.pause(), policy_version, max(PAUSE_TIMEOUT_S, timeout_s) if waits else PAUSE_TIMEOUT_S
        )

    async def end(self, policy_version: int) -> None:
        """Serve with the new weights, which are complete."""
        await self._guard(self.engine.resume(), policy_version, PAUSE_TIMEOUT_S)
        self._dirty = None
        self._settled.set()

    async def receive(self, work: Awaitable[None], policy_version: int, timeout_s: float) -> None:
        """Do one part of a transfer that someone else drives, between `begin` and `end`."""
        await self._guard(work, policy_version, timeout_s)

    async def _guard(self, work: Awaitable[None], policy_version: int, timeout_s: float) -> None:
        """Run one part of an update; where it fails, the engine is dirty and stays paused."""
        try:
            await asyncio.wait_for(work, timeout_s)
        except TimeoutError:
            await self._is_dirty(f"update to policy version {policy_version} did not finish in {timeout_s:g} s")
            raise WaitTimeoutError(f"the engine to load policy version {policy_version}", timeout_s) from None
        except Exception as error:
            reason = f"update to policy version {policy_version} failed: {error}"
            await self._is_dirty(reason)
            raise DirtyEngineError(reason) from error

    async def _is_dirty(self, reason: str) -> None:
        """Refuse requests, and give back what is in flight: it was written with good weights, and stays paused here."""
        self._dirty = reason
        self._settled.set()
        await self.engine.interrupt()

    def _clear_staged(self) -> None:
        self._staged = []
        if self._staging is not None:
            self._staging.clear()

    async def close(self) -> None:
        """Stop the engine and delete what was staged."""
        if self._staging is not None:
            self._staging.remove()
        await self.engine.close()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _next(stream: AsyncGenerator[T, None], what: str, deadline: float, timeout_s: float) -> T | None:
    """Return the stream's next item, None at its end; raises WaitTimeoutError for `what` past the deadline."""
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(stream, None)
    except TimeoutError:
        raise WaitTimeoutError(what, timeout_s) from None


def _after(request: WorkerRequest, waited_s: float) -> WorkerRequest:
    """Return the request with what is left of its tasks' deadlines."""
    return replace(request, tasks=tuple(_left(task, waited_s) for task in request.tasks))


def _left(task: SampleTask, waited_s: float) -> SampleTask:
    return task if task.remaining_s is None else replace(task, remaining_s=max(0.0, task.remaining_s - waited_s))
