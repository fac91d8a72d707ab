"""The engines that keep to one contract: the tiny one in this process, and vLLM."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file

from actors.engine import EngineSettings
from actors.tiny_engine import TinyEngine
from actors.worker import RolloutWorker
from lwz_ray.staging import StagingFolder
from tests.engine_case import TINY_LOGITS, Case


@pytest_asyncio.fixture
async def tiny_worker(tmp_path: Path) -> AsyncIterator[RolloutWorker]:
    settings = EngineSettings(
        model_path="", dtype="float32", max_length_tokens=64, max_num_seqs=8, temperature=1.0, top_p=1.0, max_tokens=64,
        stop="</answer>",
    )  # fmt: skip
    worker = RolloutWorker(TinyEngine(settings, TINY_LOGITS), (str(tmp_path),), 1000)
    await worker.start()
    yield worker
    await worker.close()


@pytest.fixture(params=["tiny", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])])
def built(request: pytest.FixtureRequest) -> tuple[RolloutWorker, dict[str, torch.Tensor], list[int], float, int]:
    if request.param == "tiny":
        base = {TinyEngine.TENSOR: TINY_LOGITS}
        return request.getfixturevalue("tiny_worker"), base, [3, 5], 0.02, 4000
    base = load_file(request.getfixturevalue("tiny_model_dir") / "model.safetensors")
    base.pop("lm_head.weight", None)  # tied to the embedding, and not published apart
    return request.getfixturevalue("vllm_worker"), base, list(range(1000, 1030)), 0.5, 450


@pytest_asyncio.fixture
async def case(built: Any) -> AsyncIterator[Case]:
    worker, base, prompt, head_start_s, long_tokens = built
    case = Case(worker, base, prompt, StagingFolder(("/dev/shm", "/tmp"), 2**25), head_start_s, long_tokens)
    start = case.version
    yield case
    if case.version != start:
        await case.update(0)
    case.staging.remove()
