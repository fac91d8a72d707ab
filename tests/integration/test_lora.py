"""Adapters reach vLLM: merged there with the base, they generate as the learner's merged export does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.engine import DirtyEngineError
from actors.worker import RolloutWorker
from launch.compose import compose
from launch.learner_room import learner_settings
from launch.weight_sync import StagedWeightSync
from learners.fsdp import FsdpBackend
from learners.trainer import Trainer
from lwz_ray.config import Config
from lwz_ray.packing import split_over_ranks
from lwz_ray.records import Completion, TrainSample
from lwz_ray.staging import read_header
from tests.learner_parts import meeting_address
from tests.rollout_parts import collect, samples_of
from tests.weight_parts import InProcess, PublishingRank

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
PROMPT_IDS = list(range(1000, 1040))
AGREE_NATS = 0.005
"""A token's mean distance of vLLM (bf16) from a float32 forward of the weights it serves."""
RANK_16_BYTES = 155_648
"""Of 7 adapters in each of 2 layers: 16 x (5 x 192 + 2 x 128) numbers a layer in float32."""


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the smoke preset with adapters, at a rate at which one step changes every logprob."""
    folder = tmp_path_factory.mktemp("runs")
    words = [f"run.dir={folder}", f"model.path={tiny_model_dir}", "optimizer.lr=0.02", "optimizer.warmup_steps=0"]
    return compose(["run=smoke_cpu", "lora=r16", *words])


@pytest.fixture
def trainer(config: Config, request: pytest.FixtureRequest) -> Iterator[Trainer]:
    """Return one learner rank in this process; `request.param` names other targets than the preset's."""
    wanted = replace(learner_settings(config, ("/dev/shm", "/tmp"), 2**26), bucket_bytes=2**16)
    targets = getattr(request, "param", None)
    if targets is not None:
        wanted = replace(wanted, lora=config.lora.model_copy(update={"target_modules": targets}))
    trainer = Trainer(wanted, FsdpBackend(wanted, 0, 1, meeting_address()))
    yield trainer
    trainer.close()


def as_samples(completions: list[Completion]) -> list[TrainSample]:
    """Reward and punish completions of PROMPT_IDS in turn, whatever they say."""
    out = []
    for i, completion in enumerate(completions):
        ids = np.asarray([*PROMPT_IDS, *completion.token_ids], dtype=np.int32)
        mask = np.arange(len(ids)) >= len(PROMPT_IDS)
        logprobs = np.concatenate([np.zeros(len(PROMPT_IDS)), completion.rollout_logprobs]).astype(np.float32)
        advantages = np.where(mask, (-1.0) ** i, 0.0).astype(np.float32)
        out.append(TrainSample(ids, len(PROMPT_IDS), mask, logprobs, advantages, 1.0 / (mask.sum() * len(completions))))
    return out


def step(trainer: Trainer, completions: list[Completion], budget: int) -> None:
    result = trainer.train([split_over_ranks(as_samples(completions), budget, 1)[0]])
    assert (result.optimizer_steps, result.skipped) == (1, 0)


async def publish(worker: RolloutWorker, trainer: Trainer) -> list[str]:
    version = worker.engine.policy_version + 1
    paths = list(trainer.publication.stage_weights(version).header_paths)
    await worker.update(version, paths, timeout_s=60.0)
    return paths


async def written(worker: RolloutWorker, seed: int) -> list[Completion]:
    return await collect(worker.stream(samples_of(PROMPT_IDS, 4, seed=seed), timeout_s=60.0))


def mean_distance(folder: Path, completions: list[Completion]) -> float:
    """Return the mean over tokens of |rollout logprob - logprob of a plain float32 forward|, in nats."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    distances = []
    for completion in completions:
        ids = torch.tensor([[*PROMPT_IDS, *completion.token_ids.tolist()]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(PROMPT_IDS) - 1 : -1]
        picked = torch.log_softmax(logits, dim=-1).gather(1, ids[0, len(PROMPT_IDS) :, None])[:, 0]
        distances.append(np.abs(picked.numpy() - completion.rollout_logprobs))
    return float(np.concatenate(distances).mean())


# The fused matrices of vLLM get one part of three and one of two from the second set.
@pytest.mark.parametrize("trainer", [None, ["q_proj", "up_proj"]], indirect=True, ids=["all", "parts"])
async def test_the_engine_serves_base_plus_adapters(
    vllm_worker: RolloutWorker, trainer: Trainer, config: Config, tiny_model_dir: Path, tmp_path: Path
) -> None:
    for update in (1, 2):  # the second is merged with the base again, not with the first
        step(trainer, await written(vllm_worker, seed=update), config.learners.microbatch_tokens)
        paths = await publish(vllm_worker, trainer)
    after = await written(vllm_worker, seed=3)
    trainer.export(str(tmp_path))
    assert mean_distance(tmp_path, after) < AGREE_NATS
    assert mean_distance(tiny_model_dir, after) > 4 * AGREE_NATS
    tensors = [t for path in paths for t in read_header(path).tensors]
    assert {t.name.rpartition(".lora_")[2] for t in tensors} == {"A.weight", "B.weight"}
    if trainer.settings.lora == config.lora:
        assert sum(t.num_bytes for t in tensors) == RANK_16_BYTES


async def test_an_engine_that_joins_late_serves_base_plus_adapters(
    vllm_worker: RolloutWorker, trainer: Trainer, config: Config, tmp_path: Path
) -> None:
    for update in (1, 2):
        step(trainer, await written(vllm_worker, seed=update), config.learners.microbatch_tokens)
    rank = InProcess(PublishingRank(trainer.publication))
    sync = StagedWeightSync([rank], "here", "auto", 60.0, lambda name, reason: pytest.fail(f"{name}: {reason}"))
    metrics = await sync.stage(41) | await sync.stage(42)
    assert metrics["weights/bytes"] == RANK_16_BYTES
    assert await sync.join("late", InProcess(vllm_worker), "elsewhere") == 42
    trainer.export(str(tmp_path))
    assert mean_distance(tmp_path, await written(vllm_worker, seed=3)) < AGREE_NATS


async def test_a_damaged_adapter_leaves_a_dirty_engine_until_a_whole_update(
    vllm_worker: RolloutWorker, trainer: Trainer, tmp_path: Path
) -> None:
    await publish(vllm_worker, trainer)
    version = vllm_worker.engine.policy_version + 1
    paths = list(trainer.publication.stage_weights(version).header_paths)
    damaged = Path(paths[-1]).with_suffix(".bin")
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    with pytest.raises(DirtyEngineError, match="checksum mismatch"):
        await vllm_worker.update(version, paths, timeout_s=60.0)
    with pytest.raises(DirtyEngineError):
        await collect(vllm_worker.stream(samples_of(PROMPT_IDS, 1, seed=1), timeout_s=0.2))
    await publish(vllm_worker, trainer)
    trainer.export(str(tmp_path))
    assert mean_distance(tmp_path, await written(vllm_worker, seed=4)) < AGREE_NATS
