"""The rollout worker's waits: each ends, and says what it waited for."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from actors.engine import DirtyEngineError, EngineSettings
from actors.tiny_engine import TinyEngine
from actors.worker import RolloutWorker
from lwz_ray.errors import WaitTimeoutError
from lwz_ray.records import RolloutRequest
from lwz_ray.weights import pack_buckets
from tests.rollout_parts import collect

SETTINGS = EngineSettings(
    model_path="", dtype="float32", max_length_tokens=64, max_num_seqs=8, temperature=1.0, top_p=1.0, max_tokens=8,
    stop="</answer>",
)  # fmt: skip


class SlowEngine(TinyEngine):
    """Loads no weights before `may_load` is set."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, torch.zeros(4, 4))
        self.may_load = asyncio.Event()

    async def load_weights(self, policy_version: int, header_paths: Sequence[str]) -> None:
        await self.may_load.wait()
        await super().load_weights(policy_version, header_paths)


async def started(folder: Path) -> tuple[RolloutWorker, SlowEngine]:
    engine = SlowEngine()
    worker = RolloutWorker(engine, (str(folder),), 1000)
    await worker.start()
    return worker, engine


def stage(worker: RolloutWorker, version: int) -> None:
    for bucket in pack_buckets([("logits", torch.eye(4))], version, 1000):
        worker.stage(bucket)


def names_below(folder: Path, pattern: str) -> list[str]:
    return sorted(p.name for p in folder.rglob(pattern))


async def test_a_request_waits_for_an_update_and_not_for_ever(tmp_path: Path) -> None:
    worker, engine = await started(tmp_path)
    stage(worker, 1)
    update = asyncio.create_task(worker.update(1, None, 5.0))
    await asyncio.sleep(0)
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.05 s for a weight update to finish before generating"):
        await collect(worker.stream(RolloutRequest([1], 1, 0), 0.05))
    waiting = asyncio.create_task(collect(worker.stream(RolloutRequest([1], 2, 0), 5.0)))
    await asyncio.sleep(0)
    engine.may_load.set()
    assert {s.policy_version for c in await waiting for s in c.version_spans} == {1}
    assert await update > 0.05


async def test_an_update_that_hangs_leaves_the_engine_dirty(tmp_path: Path) -> None:
    worker, engine = await started(tmp_path)
    stage(worker, 1)
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.05 s for the engine to load policy version 1"):
        await worker.update(1, None, 0.05)
    with pytest.raises(DirtyEngineError, match=r"update to policy version 1 did not finish in 0\.05 s"):
        await collect(worker.stream(RolloutRequest([1], 1, 0), 0.05))
    engine.may_load.set()
    stage(worker, 2)
    await worker.update(2, None, 5.0)
    assert (await collect(worker.stream(RolloutRequest([1], 1, 0), 5.0)))[0].policy_version_min == 2


async def test_a_request_that_never_ends_is_given_up(tmp_path: Path) -> None:
    worker, engine = await started(tmp_path)
    await engine.pause()
    with pytest.raises(WaitTimeoutError, match=r"waited 1 s for 3 of 3 completions of request r1"):
        await collect(worker.stream(RolloutRequest([1], 3, 0), 1.0))


async def test_what_was_staged_is_gone_after_an_update_and_after_the_end(tmp_path: Path) -> None:
    worker, engine = await started(tmp_path)
    engine.may_load.set()
    stage(worker, 1)
    assert names_below(tmp_path, "v*") == ["v000001_00000.bin", "v000001_00000.json"]
    await worker.update(1, None, 5.0)
    assert names_below(tmp_path, "v*") == []
    await worker.close()
    assert names_below(tmp_path, "*") == []
