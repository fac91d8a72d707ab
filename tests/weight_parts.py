"""What tests of weight transfer share: real parts of both rooms, called in this process as Ray actors are."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from actors.engine import EngineLostError, EngineSettings
from actors.load import EngineLoad
from actors.tiny_engine import TinyEngine
from actors.worker import RolloutWorker
from launch.weight_sync import StagedWeightSync
from learners.publication import Publication
from lwz_ray.staging import StagedWeights, read_bucket
from lwz_ray.weights import Bucket
from tests.learner_parts import settings

ENGINE = EngineSettings(
    model_path="", dtype="float32", max_length_tokens=64, max_num_seqs=8, temperature=1.0, top_p=1.0, max_tokens=8,
    stop="</answer>",
)  # fmt: skip


class InProcess:
    """Calls an object's methods as a handle does: `handle.name.remote(...)` begins at once and is awaited.

    As with Ray, an argument that is still to come is awaited before the method is called. `calls` has the names.
    """

    def __init__(self, target: Any) -> None:
        self.target = target
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._begin(name, arguments))

    def _begin(self, name: str, arguments: tuple[Any, ...]) -> "asyncio.Future[Any]":
        begun = asyncio.ensure_future(self._call(name, arguments))
        begun.add_done_callback(lambda end: end.cancelled() or end.exception())  # nobody need ask, as with Ray
        return begun

    async def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self.calls.append(name)
        ready = [await a if isinstance(a, asyncio.Future) else a for a in arguments]
        out = getattr(self.target, name)(*ready)
        return await out if asyncio.iscoroutine(out) else out


class TableBackend:
    """The part of a backend that publishes: one table of logits."""

    is_sender = True

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def stream_weights(self, dtype: torch.dtype, trainable_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        yield TinyEngine.TENSOR, self.logits.to(dtype)
        yield "unused", torch.arange(300).to(dtype)


class PublishingRank:
    """A learner rank's publishing calls, as LearnerActor makes them."""

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.alive = True

    def stage_weights(self, policy_version: int) -> StagedWeights:
        return self.publication.stage_weights(policy_version)

    def staged_bucket(self, header_path: str) -> Bucket:
        return read_bucket(header_path)

    def drop_older_staged(self) -> None:
        self.publication.drop_older_staged()

    async def hang(self, policy_version: int) -> None:
        """Stage as ranks do that wait for one another for ever."""
        await asyncio.Event().wait()

    async def heartbeat(self) -> int:
        """Return a process id; a rank that is not alive never answers, as a frozen one."""
        if not self.alive:
            await asyncio.Event().wait()
        return 1


class TableRank(PublishingRank):
    """One whose policy is a table of logits."""

    def __init__(self, staging: Path, logits: torch.Tensor) -> None:
        wanted = settings(Path("none"), staging_candidates=(str(staging),), bucket_bytes=512, publish_dtype="float32")
        self.backend: Any = TableBackend(logits)
        super().__init__(Publication(wanted, self.backend))


def logits_of(token: int) -> torch.Tensor:
    """Return a table after which every text is `token`, again and again; [8, 8]."""
    table = torch.zeros(8, 8)
    table[:, token] = 50.0
    return table


async def tiny_worker(staging: Path, engine: TinyEngine | None = None) -> RolloutWorker:
    """Start a worker whose weights of version 0 write token 1."""
    worker = RolloutWorker(engine or TinyEngine(ENGINE, logits_of(1)), (str(staging),), 2**16)
    await worker.start()
    return worker


class StubbornEngine(TinyEngine):
    """Refuses its next `refusals` loads, and holds the others until it may load. Gone, it gives no sign of life."""

    def __init__(self) -> None:
        super().__init__(ENGINE, logits_of(1))
        self.refusals, self.is_gone = 0, False
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.asked = asyncio.Event()

    async def load_weights(self, policy_version: int, header_paths: Sequence[str]) -> None:
        self.asked.set()
        await self.may_load.wait()
        if self.refusals:
            self.refusals -= 1
            raise ValueError("no memory for it")
        await super().load_weights(policy_version, header_paths)

    async def load(self) -> EngineLoad:
        if self.is_gone:
            raise EngineLostError("its process is gone")
        return await super().load()


@dataclass
class Case:
    """A learner, engines that come and go, and what was said of those that failed."""

    folder: Path
    rank: TableRank
    sync: StagedWeightSync
    failed: list[tuple[str, str]]

    def train(self, token: int) -> None:
        self.rank.backend.logits = logits_of(token)

    async def publish(self, version: int) -> dict[str, float]:
        return await self.sync.stage(version) | await self.sync.load(version)

    def num_staged(self) -> int:
        """Return how many versions lie on the learner's host."""
        return len(list(self.folder.glob("learner/*/staged-*")))

    async def joined(self, name: str, node: str = "one") -> tuple[InProcess, StubbornEngine]:
        engine, handle = await self.started(name)
        await self.sync.join(name, handle, node)
        return handle, engine

    async def started(self, name: str) -> tuple[StubbornEngine, InProcess]:
        (self.folder / name).mkdir()
        engine = StubbornEngine()
        return engine, InProcess(await tiny_worker(self.folder / name, engine))


def weight_case(folder: Path, transport: str = "auto", timeout_s: float = 5.0) -> Case:
    """Return a case with learner rank 0 on node `one`, whose policy writes token 2."""
    (folder / "learner").mkdir()
    rank = TableRank(folder / "learner", logits_of(2))
    failed: list[tuple[str, str]] = []
    sync = StagedWeightSync([InProcess(rank)], "one", transport, timeout_s, lambda *told: failed.append(told))
    return Case(folder, rank, sync, failed)


def served(engine: TinyEngine) -> tuple[int, int]:
    """Return (policy version by label, token that the weights write)."""
    return engine.policy_version, int(engine._logits[0].argmax())
