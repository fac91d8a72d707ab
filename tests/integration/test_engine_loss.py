"""A rollout actor whose vLLM process is frozen or gone: nobody gets an answer from it, and nobody waits for ever."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.engine import EngineLostError
from lwz_ray.errors import InfrastructureError
from tests.rollout_parts import collect, samples_of

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]


async def gone(pids: list[int]) -> bool:
    """Tell whether all of them end within 20 s."""
    end = time.monotonic() + 20.0
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.1)
    return True


async def test_a_frozen_engine_is_silent_and_a_killed_one_says_so(ray_cluster: None, tiny_model_dir: Path) -> None:
    """One actor of a number beyond this host's cores, in turn: alive, frozen, killed; then the same again outright."""
    import ray

    from actors.engine import EngineSettings
    from actors.remote import RolloutActor, stream_of

    settings = EngineSettings(
        model_path=str(tiny_model_dir), dtype="bfloat16", max_length_tokens=4096, max_num_seqs=4, temperature=1.0,
        top_p=1.0, max_tokens=4000, stop="", kv_cache_mib=64, memory_utilization=0.05, enforce_eager=True,
        replica_index=os.cpu_count() or 1,
    )  # fmt: skip
    actor: Any = RolloutActor.options(num_cpus=0.5).remote(settings, ("/dev/shm", "/tmp"), 2**26)
    with pytest.raises(InfrastructureError, match="the vLLM engine is not running"):
        await asyncio.wait_for(actor.heartbeat.remote(), 60.0)
    await asyncio.wait_for(actor.start.remote(), 120.0)
    actor_pid, *engine_pids = await asyncio.wait_for(actor.pids.remote(), 20.0)
    load = await asyncio.wait_for(actor.heartbeat.remote(), 20.0)
    assert (load.policy_version, load.num_running) == (0, 0)
    assert load.cache_tokens > 4096

    reader = asyncio.create_task(collect(stream_of(actor)(samples_of([1000, 1001], 2, seed=1), 300.0)))
    while load.num_running < 2:
        load = await asyncio.wait_for(actor.heartbeat.remote(), 20.0)
    for pid in engine_pids:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(actor.heartbeat.remote(), 3.0)
    assert not reader.done()
    unanswered = asyncio.ensure_future(actor.heartbeat.remote())
    assert set(engine_pids) <= set(await asyncio.wait_for(actor.kill_engine.remote(), 30.0))
    for waiting in (reader, unanswered, asyncio.ensure_future(actor.heartbeat.remote())):
        with pytest.raises(EngineLostError, match="vLLM's engine process is gone"):
            await asyncio.wait_for(waiting, 20.0)
    assert await gone(engine_pids)
    ray.kill(actor)
    assert await gone([actor_pid])
