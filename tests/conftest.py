"""Fixtures that the whole suite shares: local models, the device, one Ray runtime."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from actors.worker import RolloutWorker

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny tensors on several threads wait for one another; whatever should use more says so itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPO_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Return the root of this repository."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def device() -> str:
    """Return "cuda" where torch sees a GPU, else "cpu"; LWZ_DEVICE decides where it is set."""
    import torch

    wanted = os.environ.get("LWZ_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    if wanted not in ("cpu", "cuda"):
        pytest.fail(f"LWZ_DEVICE={wanted}: use cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.fail("LWZ_DEVICE=cuda, but torch sees no GPU")
    return wanted


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Return the folder of the local models, made first where they are missing or incomplete."""
    from launch.setup_models import setup_models

    folder = REPO_ROOT / "models"
    setup_models(folder)
    return folder.resolve()


@pytest.fixture(scope="session")
def smol_model_dir(models_dir: Path) -> Path:
    """Return SmolLM2-135M-Instruct: a real language model with a chat template."""
    from launch.setup_models import SMOL

    return models_dir / SMOL


@pytest.fixture(scope="session")
def tiny_model_dir(models_dir: Path) -> Path:
    """Return a random 2-layer Llama with SmolLM2's tokenizer."""
    from launch.setup_models import TINY_POLICY

    return models_dir / TINY_POLICY


@pytest.fixture(scope="session")
def tiny_classifier_dir(models_dir: Path) -> Path:
    """Return a random 2-layer Llama with one scalar output."""
    from launch.setup_models import TINY_CLASSIFIER

    return models_dir / TINY_CLASSIFIER


@pytest.fixture(scope="session")
def embedder_dir(models_dir: Path) -> Path:
    """Return all-MiniLM-L6-v2: a real sentence-embedding model for English."""
    from launch.setup_models import EMBEDDER

    return models_dir / EMBEDDER


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Run one local Ray runtime of 2 CPUs for all tests that need one."""
    import ray

    # Ray puts sockets below this folder, and a socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="lwz", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=512 * 2**20,
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": str(REPO_ROOT)}},
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest_asyncio.fixture(scope="session")
async def vllm_worker(tiny_model_dir: Path, device: str) -> "AsyncIterator[RolloutWorker]":
    """Run one vLLM engine on the tiny random model for all tests; any of them may change its weights."""
    from actors.engine import EngineSettings
    from actors.vllm_engine import VllmEngine
    from actors.worker import RolloutWorker

    settings = EngineSettings(
        model_path=str(tiny_model_dir),
        dtype="bfloat16",
        max_length_tokens=512,
        max_num_seqs=16,
        temperature=1.0,
        top_p=1.0,
        max_tokens=64,
        stop="</answer>",
        kv_cache_mib=64,
        # Of the GPU's memory, or of one NUMA node's, which must be free at start; the cache has its own setting.
        memory_utilization=0.05 if device == "cpu" else 0.1,
        enforce_eager=True,
    )
    before = set(os.environ)
    worker = RolloutWorker(VllmEngine(settings), ("/dev/shm", "/tmp"), 2**26)
    await worker.start()
    # What the engine set for its own processes is not meant for the runs that other tests start.
    for name in set(os.environ) - before:
        del os.environ[name]
    yield worker
    await worker.close()
