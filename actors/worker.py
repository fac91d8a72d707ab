"""The rollout worker: one engine, weight updates in flight, and a gate that keeps a dirty engine from serving."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Sequence

from actors.engine import DirtyEngineError, Engine
from actors.streams import CompletionStream
from lwz_ray.errors import WaitTimeoutError
from lwz_ray.records import RolloutRequest
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import Bucket

PAUSE_TIMEOUT_S = 60.0
"""For the engine to finish the step it is in, or to start again."""


class RolloutWorker:
    """Owns one engine. New requests wait while an update runs; requests in flight are kept."""

    def __init__(self, engine: Engine, staging_candidates: tuple[str, ...], staging_bytes: int) -> None:
        self.engine = engine
        self._staging_candidates = staging_candidates
        self._staging_bytes = staging_bytes
        self._staging: StagingFolder | None = None
        self._staged: list[str] = []
        self._serving = asyncio.Event()
        self._dirty: str | None = None
        self._num_requests = 0

    async def start(self) -> None:
        """Build the engine; policy version 0 is the model folder's weights."""
        await self.engine.start()
        self._serving.set()

    async def stream(self, request: RolloutRequest, timeout_s: float) -> CompletionStream:
        """Yield completions as they end; waits for a running update. Raises DirtyEngineError or WaitTimeoutError.

        timeout_s: for the whole group.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        await self._until_serving(timeout_s)
        self._num_requests += 1
        request_id, num_ended = f"r{self._num_requests}", 0
        stream = self.engine.stream(request, request_id)
        async with contextlib.aclosing(stream):
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        item = await anext(stream, None)
                except TimeoutError:
                    missing = f"{request.num_samples - num_ended} of {request.num_samples} completions"
                    raise WaitTimeoutError(f"{missing} of request {request_id}", timeout_s) from None
                if item is None:
                    return
                num_ended += 1
                yield item

    async def _until_serving(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._serving.wait(), timeout_s)
        except TimeoutError:
            if self._dirty:
                raise DirtyEngineError(self._dirty) from None
            raise WaitTimeoutError("a weight update to finish before generating", timeout_s) from None

    def stage(self, bucket: Bucket) -> None:
        """Bring one bucket to this host; `update` loads what was staged."""
        if self._staging is None:
            self._staging = StagingFolder(self._staging_candidates, self._staging_bytes)
        self._staged.append(self._staging.write(bucket))

    async def update(self, policy_version: int, header_paths: Sequence[str] | None, timeout_s: float) -> float:
        """Replace the weights in flight; return the seconds generation was paused.

        header_paths: staged by someone else on this host, or None for what `stage` brought. A failure leaves the engine
        dirty and paused until a later full update succeeds.
        """
        paths = list(header_paths) if header_paths is not None else self._staged
        started = time.monotonic()
        try:
            await self.begin(policy_version)
            await self._guard(self.engine.load_weights(policy_version, paths), policy_version, timeout_s)
        finally:
            self._clear_staged()
        await self.end(policy_version)
        return time.monotonic() - started

    async def begin(self, policy_version: int) -> None:
        """Hold back new requests and freeze those in flight."""
        self._serving.clear()
        await self._guard(self.engine.pause(), policy_version, PAUSE_TIMEOUT_S)

    async def end(self, policy_version: int) -> None:
        """Serve with the new weights, which are complete."""
        await self._guard(self.engine.resume(), policy_version, PAUSE_TIMEOUT_S)
        self._dirty = None
        self._serving.set()

    async def receive(self, work: Awaitable[None], policy_version: int, timeout_s: float) -> None:
        """Take part in a transfer that someone else drives, between `begin` and `end`."""
        await self._guard(work, policy_version, timeout_s)

    async def _guard(self, work: Awaitable[None], policy_version: int, timeout_s: float) -> None:
        """Run one part of an update; where it fails, the engine is dirty and stays paused."""
        try:
            await asyncio.wait_for(work, timeout_s)
        except TimeoutError:
            self._dirty = f"update to policy version {policy_version} did not finish in {timeout_s:g} s"
            raise WaitTimeoutError(f"the engine to load policy version {policy_version}", timeout_s) from None
        except Exception as error:
            self._dirty = f"update to policy version {policy_version} failed: {error}"
            raise DirtyEngineError(self._dirty) from error

    def _clear_staged(self) -> None:
        self._staged = []
        if self._staging is not None:
            self._staging.clear()

    async def close(self) -> None:
        """Stop the engine and delete what was staged."""
        if self._staging is not None:
            self._staging.remove()
        await self.engine.close()
