"""A rollout worker of this folder's own (until the shared one is there)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio


@pytest_asyncio.fixture(scope="session")
async def vllm_worker(tiny_model_dir: Path) -> AsyncIterator[object]:
    from actors.engine import EngineSettings
    from actors.vllm_engine import VllmEngine
    from actors.worker import RolloutWorker

    settings = EngineSettings(
        model_path=str(tiny_model_dir), dtype="bfloat16", max_length_tokens=512, max_num_seqs=16, temperature=1.0,
        top_p=1.0, max_tokens=48, stop="</answer>", kv_cache_mib=64, memory_utilization=0.1, enforce_eager=True,
    )  # fmt: skip
    worker = RolloutWorker(VllmEngine(settings), ("/dev/shm", "/tmp"), 2**26)
    await worker.start()
    yield worker
    await worker.close()
