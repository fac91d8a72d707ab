"""Ray actors of the generating side: thin shells around plain classes. The only file of this room that imports ray."""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from actors import orphans
from actors.engine import EngineLostError, EngineSettings
from actors.load import EngineLoad
from actors.streams import CompletionStream, PieceCall, PieceStream, StreamCall
from actors.tasks import WorkerRequest
from actors.vllm_engine import VllmEngine
from actors.worker import RolloutWorker
from lwz_ray.weights import Bucket


def stream_of(handle: Any) -> StreamCall:
    """Return the calls of a Ray actor's `stream` as an async generator here."""
    return _generator(handle.stream)


def pieces_of(handle: Any) -> PieceCall:
    """Return the calls of a Ray actor's `pieces` as an async generator here."""
    return _generator(handle.pieces)


def _generator(method: Any) -> Any:
    """Return the calls of a Ray actor's generator method as an async generator here.

    Ray holds nothing back: the actor runs ahead of a slow reader by at most one request. A reader that stops early
    cancels the task, and with it what the engine is still writing. An actor that is gone raises EngineLostError; what
    it raised itself keeps its kind.
    """

    async def call(request: WorkerRequest, timeout_s: float) -> AsyncGenerator[Any, None]:
        refs = method.remote(request, timeout_s)
        ended = False
        try:
            async for ref in refs:
                yield await ref
            ended = True
        except (RayTaskError, TaskCancelledError):
            ended = True
            raise
        except RayError as error:
            ended = True
            raise EngineLostError(f"the rollout actor is gone: {error}") from error
        finally:
            if not ended:
                ray.cancel(refs)

    return call


@ray.remote
class RolloutActor:
    """One rollout worker with one vLLM engine."""

    def __init__(self, settings: EngineSettings, staging_candidates: tuple[str, ...], staging_bytes: int) -> None:
        self._engine = VllmEngine(settings)
        self._worker = RolloutWorker(self._engine, staging_candidates, staging_bytes)

    async def start(self) -> str:
        """Build the engine; return this host's node id."""
        await self._worker.start()
        return ray.get_runtime_context().get_node_id()

    async def stream(self, request: WorkerRequest, timeout_s: float) -> CompletionStream:
        """Yield (sample_index, completion) as each ends; ends early with `ray.cancel`."""
        call = self._worker.stream(request, timeout_s)
        async with contextlib.aclosing(call) as stream:
            async for item in stream:
                yield item

    async def pieces(self, request: WorkerRequest, timeout_s: float) -> PieceStream:
        """Yield the text of one sample as it is written, then its completion; ends early with `ray.cancel`."""
        async with contextlib.aclosing(self._worker.pieces(request, timeout_s)) as stream:
            async for piece in stream:
                yield piece

    async def interrupt(self) -> None:
        """End what is being written with what it has, finish reason `abort`."""
        await self._worker.interrupt()

    async def heartbeat(self) -> EngineLoad:
        """Return the engine's numbers through its main loop; without an answer in the caller's time it is frozen."""
        return await self._worker.heartbeat()

    async def pids(self) -> list[int]:
        """Return the process ids of this actor and of everything below it."""
        return orphans.process_tree()

    async def kill_engine(self) -> list[int]:
        """Kill every process below this one, stopped ones too; return their ids. Open streams raise EngineLostError."""
        return await orphans.kill_children()

    async def stage(self, bucket: Bucket) -> None:
        self._worker.stage(bucket)

    async def update(self, policy_version: int, header_paths: Sequence[str] | None, timeout_s: float) -> float:
        return await self._worker.update(policy_version, header_paths, timeout_s)

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the learner's transfer group (nccl)."""
        await self._engine.init_transfer(init_info)

    async def begin_update(self, policy_version: int, timeout_s: float) -> None:
        """Open a transfer that the learner drives (nccl)."""
        await self._worker.begin(policy_version, timeout_s)
        await self._worker.receive(self._engine.start_update(), policy_version, timeout_s)

    async def receive_update(self, update_info: dict[str, Any], policy_version: int, timeout_s: float) -> None:
        await self._worker.receive(self._engine.receive(update_info), policy_version, timeout_s)

    async def end_update(self, policy_version: int, timeout_s: float) -> None:
        await self._worker.receive(self._engine.finish_update(policy_version), policy_version, timeout_s)
        await self._worker.end(policy_version)

    async def close(self) -> None:
        await self._worker.close()
