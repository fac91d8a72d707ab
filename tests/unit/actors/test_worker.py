"""The rollout worker's waits: each ends, and says what it waited for."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engine import DirtyEngineError, EngineSettings
from actors.tiny_engine import TinyEngine
from actors.worker import RolloutWorker
from lwz_ray.errors import WaitTimeoutError
from lwz_ray.weights import pack_buckets
from tests.rollout_parts import collect, samples_of

SETTINGS = EngineSettings(
    model_path="", dtype="float32", max_length_tokens=64, max_num_seqs=8, temperature=1.0, top_p=1.0, max_tokens=8,
    stop="</answer>",
)  # fmt: skip
ENDLESS = torch.tensor([[-100.0, 0.0, 0.0, 0.0]] * 4)


class SlowEngine(TinyEngine):
    """Loads no weights before `may_load` is set."""

    def __init__(self, ends: bool) -> None:
        super().__init__(SETTINGS, torch.zeros(4, 4) if ends else ENDLESS)
        self.may_load = asyncio.Event()

    async def load_weights(self, policy_version: int, header_paths: Sequence[str]) -> None:
        await self.may_load.wait()
        await super().load_weights(policy_version, header_paths)


async def started(folder: Path, ends: bool = True) -> tuple[RolloutWorker, SlowEngine]:
    engine = SlowEngine(ends)
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
        await collect(worker.stream(samples_of([1], 1, 0), 0.05))
    waiting = asyncio.create_task(collect(worker.stream(samples_of([1], 2, 0), 5.0)))
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
        await collect(worker.stream(samples_of([1], 1, 0), 0.05))
    engine.may_load.set()
    stage(worker, 2)
    await worker.update(2, None, 5.0)
    assert (await collect(worker.stream(samples_of([1], 1, 0), 5.0)))[0].policy_version_min == 2


async def test_a_request_that_never_ends_is_given_up(tmp_path: Path) -> None:
    worker, engine = await started(tmp_path)
    await engine.pause()
    with pytest.raises(WaitTimeoutError, match=r"waited 1 s for 3 of 3 completions of request r1"):
        await collect(worker.stream(samples_of([1], 3, 0), 1.0))


async def test_any_part_of_a_transfer_that_fails_leaves_the_engine_dirty(tmp_path: Path) -> None:
    worker, _ = await started(tmp_path, ends=False)
    running = asyncio.create_task(collect(worker.stream(samples_of([1], 1, 0, max_tokens=10**6), 60.0)))
    await asyncio.sleep(0)

    async def fail() -> None:
        raise RuntimeError("the sender is gone")

    await worker.begin(1, 5.0)
    with pytest.raises(DirtyEngineError, match="update to policy version 1 failed: the sender is gone"):
        await worker.receive(fail(), 1, 5.0)
    with pytest.raises(DirtyEngineError, match="update to policy version 1 failed: the sender is gone"):
        await collect(worker.stream(samples_of([1], 1, 0), 60.0))
    assert [t.finish_reason for t in await asyncio.wait_for(running, 5.0)] == ["abort"]
    await worker.begin(2, 5.0)
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.05 s for the engine to load policy version 2"):
        await worker.receive(asyncio.sleep(60.0), 2, 0.05)


async def test_what_was_staged_is_gone_after_an_update_and_after_the_end(tmp_path: Path) -> None:
    worker, engine = await started(tmp_path)
    engine.may_load.set()
    stage(worker, 1)
    assert names_below(tmp_path, "v*") == ["v000001_00000.bin", "v000001_00000.json"]
    await worker.update(1, None, 5.0)
    assert names_below(tmp_path, "v*") == []
    await worker.close()
    assert names_below(tmp_path, "*") == []


async def test_waiting_for_an_update_counts_against_a_deadline(tmp_path: Path) -> None:
    worker, engine = await started(tmp_path, ends=False)
    stage(worker, 1)
    update = asyncio.create_task(worker.update(1, None, 5.0))
    await asyncio.sleep(0)
    late = asyncio.create_task(collect(worker.stream(samples_of([1], 2, 0, max_tokens=10**6, remaining_s=0.05), 5.0)))
    await asyncio.sleep(0.1)
    engine.may_load.set()
    await update
    for completion in await late:
        assert completion.finish_reason == "abort" and completion.num_tokens <= 1


async def test_samples_beyond_max_num_seqs_wait_and_say_so(tmp_path: Path) -> None:
    worker, _ = await started(tmp_path, ends=False)
    running = asyncio.create_task(collect(worker.stream(samples_of([1], 11, 0, max_tokens=10**6), 5.0)))
    await asyncio.sleep(0.01)
    load = await worker.heartbeat()
    assert (load.num_running, load.num_waiting, load.cache_tokens) == (8, 3, 8 * 64)
    await worker.interrupt()
    texts = await running
    assert [t.finish_reason for t in texts] == ["abort"] * 11
    assert [t.num_tokens > 0 for t in texts] == [True] * 8 + [False] * 3
    load = await worker.heartbeat()
    assert (load.num_running, load.num_waiting, load.cache_usage) == (0, 0, 0.0)


async def test_an_update_that_fails_gives_back_what_is_in_flight_and_is_told_at_once(tmp_path: Path) -> None:
    worker, engine = await started(tmp_path, ends=False)
    running = asyncio.create_task(collect(worker.stream(samples_of([1], 1, 0, max_tokens=10**6), 60.0)))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(worker.update(1, [], 60.0))
    await asyncio.sleep(0)
    later = asyncio.create_task(collect(worker.stream(samples_of([1], 1, 0), 60.0)))
    engine.may_load.set()
    tasks: list[asyncio.Task[Any]] = [waiting, later]
    for task in tasks:
        with pytest.raises(DirtyEngineError, match="update to policy version 1 failed: 'logits'"):
            await asyncio.wait_for(task, 5.0)
    assert [t.finish_reason for t in await asyncio.wait_for(running, 5.0)] == ["abort"]
