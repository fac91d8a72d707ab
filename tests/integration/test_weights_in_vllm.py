"""The weights in vLLM are the learner's: shown by logprobs, since a version label alone proves nothing."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from actors.worker import RolloutWorker
from launch.compose import compose
from launch.rooms import learner_settings
from learners.group import LearnerGroup
from lwz_ray.batching import minibatches_of
from lwz_ray.config import Config
from lwz_ray.credit import Credit
from lwz_ray.records import Completion, Group, ParsedText, Prompt, RolloutRequest, Sample
from tests.rollout_parts import collect

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
PROMPT_IDS = list(range(1000, 1040))
AGREE_NATS = 0.005
"""A token's mean distance of vLLM (bf16) from a float32 forward: seen 0.0008 of the same weights, 0.24 of the old."""
WORLD = 2


class Ranks:
    """Two learner ranks as Ray actors, and the calls of their group."""

    def __init__(self, handles: list[Any], config: Config) -> None:
        self.handles = handles
        room = config.learners
        ranks: list[Any] = [RankCalls(h) for h in handles]
        self.group = LearnerGroup(ranks, room.microbatch_tokens, timeout_s=60.0)

    async def stage(self, policy_version: int) -> list[str]:
        """Return the header paths that rank 0 wrote on this host."""
        calls = [h.stage_weights.remote(policy_version) for h in self.handles]
        return (await asyncio.wait_for(asyncio.gather(*calls), 60.0))[0]


class RankCalls:
    """A LearnerActor handle as `LearnerGroup` calls it."""

    def __init__(self, handle: Any) -> None:
        self.train, self.export = handle.train.remote, handle.export.remote
        self.save, self.load = handle.save.remote, handle.load.remote


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the smoke preset with a rate at which one step changes every logprob, and buckets of 1 MiB."""
    return compose(
        [
            "run=smoke_cpu",
            f"run.dir={tmp_path_factory.mktemp('runs')}",
            f"model.path={tiny_model_dir}",
            "optimizer.lr=0.02",
            "optimizer.warmup_steps=0",
            "weights.bucket_mib=1",
        ]
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ranks(ray_cluster: None, config: Config) -> AsyncIterator[Ranks]:
    """Start a gloo group of two FSDP2 ranks."""
    from learners.remote import LearnerActor

    settings = learner_settings(config, ("/dev/shm", "/tmp"), 2**26)
    actor: Any = LearnerActor
    handles = [actor.options(num_cpus=0.2).remote(settings) for _ in range(WORLD)]
    try:
        address = await asyncio.wait_for(handles[0].rendezvous.remote(), 120.0)
        await asyncio.wait_for(asyncio.gather(*(h.start.remote(i, WORLD, address) for i, h in enumerate(handles))), 120)
        yield Ranks(handles, config)
        await asyncio.wait_for(asyncio.gather(*(h.close.remote() for h in handles)), 60.0)
    finally:
        import ray

        for handle in handles:
            ray.kill(handle)


def as_group(completions: list[Completion]) -> Group:
    """Wrap completions of PROMPT_IDS, whatever they say, as one group to train on."""
    prompt = Prompt("p", "Write.", "en", None, 0)
    parsed = ParsedText(None, None, False, 0.0)
    ids = np.asarray(PROMPT_IDS, dtype=np.int32)
    return Group(0, prompt, tuple(Sample(0, i, prompt, ids, c, parsed, 0) for i, c in enumerate(completions)))


def mean_distance(model: Any, completions: list[Completion], temperature: float) -> float:
    """Return the mean over tokens of |rollout logprob - logprob of a plain float32 forward|, in nats."""
    import torch

    distances = []
    for completion in completions:
        ids = torch.tensor([[*PROMPT_IDS, *completion.token_ids.tolist()]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(PROMPT_IDS) - 1 : -1] / temperature
        picked = torch.log_softmax(logits, dim=-1).gather(1, ids[0, len(PROMPT_IDS) :, None])[:, 0]
        distances.append(np.abs(picked.numpy() - completion.rollout_logprobs))
    return float(np.concatenate(distances).mean())


def load_float32(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


async def test_logprobs_follow_the_learner_through_an_update(
    vllm_worker: RolloutWorker, ranks: Ranks, config: Config, tiny_model_dir: Path, tmp_path: Path
):
    engine: Any = vllm_worker.engine
    temperature = engine.settings.temperature
    before = await collect(vllm_worker.stream(RolloutRequest(PROMPT_IDS, 4, seed=1), timeout_s=60.0))
    credits = [Credit(np.full(c.num_tokens, a)) for c, a in zip(before, (1.0, -1.0, 0.5, -0.5), strict=True)]
    limit = config.sampling.max_tokens
    minibatches = minibatches_of([as_group(before)], [credits], None, config.algorithm, limit)
    result = await ranks.group.train(minibatches)
    assert (result.optimizer_steps, result.skipped) == (1, 0)

    version = engine.policy_version + 1
    paths = await ranks.stage(version)
    assert len(paths) > 1
    await vllm_worker.update(version, paths, timeout_s=60.0)
    after = await collect(vllm_worker.stream(RolloutRequest(PROMPT_IDS, 4, seed=2), timeout_s=60.0))
    await ranks.group.export(str(tmp_path))

    new, old = load_float32(tmp_path), load_float32(tiny_model_dir)
    assert {s.policy_version for c in after for s in c.version_spans} == {version}
    seen = {name: mean_distance(m, after, temperature) for name, m in (("new", new), ("old", old))}
    assert seen["new"] < AGREE_NATS
    assert seen["old"] > 20 * AGREE_NATS


async def update_to_new_weights(worker: RolloutWorker, ranks: Ranks) -> int:
    """Publish the learner's present weights as the next version; return it."""
    version = worker.engine.policy_version + 1
    await worker.update(version, await ranks.stage(version), timeout_s=60.0)
    return version


async def test_no_prefix_of_old_weights_is_reused(vllm_worker: RolloutWorker, ranks: Ranks):
    engine: Any = vllm_worker.engine
    block = engine.llm.vllm_config.cache_config.block_size
    long_prompt = [2000 + i % 500 for i in range(2 * block + 20)]
    assert len(long_prompt) + 4 < engine.settings.max_length_tokens
    cached = []
    for name in ("first", "again"):
        cached.append(await num_cached(engine, long_prompt, f"salt-{name}"))
    await update_to_new_weights(vllm_worker, ranks)
    for name in ("updated", "updated-again"):
        cached.append(await num_cached(engine, long_prompt, f"salt-{name}"))
    assert cached == [0, 2 * block, 0, 2 * block]


async def num_cached(engine: Any, prompt_token_ids: list[int], request_id: str) -> int:
    """Return how many of the prompt's tokens came from the cache."""
    prompt, params = engine.sampling_of(RolloutRequest(prompt_token_ids, 1, seed=1), 0)
    outputs = [output async for output in engine.llm.generate(prompt, params, request_id)]
    return outputs[-1].num_cached_tokens


async def until_written(engine: Any, num_sequences: int, num_tokens: int) -> None:
    """Wait until so many sequences are being generated, each with a beginning."""
    end = time.monotonic() + 30.0
    written: list[int] = []
    while len(written) < num_sequences or min(written) < num_tokens:
        if time.monotonic() > end:
            pytest.fail(f"waited 30 s for {num_sequences} sequences of {num_tokens} tokens; written so far: {written}")
        await asyncio.sleep(0.01)
        states = engine.llm.output_processor.request_states.values()
        written = [state.detokenizer.num_output_tokens() for state in states if state.detokenizer]


async def test_requests_in_flight_survive_an_update(
    vllm_worker: RolloutWorker, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
):
    engine: Any = vllm_worker.engine
    num_tokens = 400
    monkeypatch.setattr(engine, "settings", replace(engine.settings, max_tokens=num_tokens))
    version = engine.policy_version + 1
    paths = await ranks.stage(version)
    running = [
        asyncio.create_task(collect(vllm_worker.stream(RolloutRequest(PROMPT_IDS, 4, s), 120.0))) for s in (3, 4)
    ]
    await until_written(engine, num_sequences=8, num_tokens=20)
    await vllm_worker.update(version, paths, timeout_s=60.0)
    completions = [c for group in await asyncio.gather(*running) for c in group]
    assert len(completions) == 8
    for completion in completions:
        spans = completion.version_spans
        assert [s.policy_version for s in spans] == [version - 1, version]
        assert (spans[0].start, spans[0].stop, spans[1].stop) == (0, spans[1].start, completion.num_tokens)
        assert 0 < spans[1].start < completion.num_tokens
    assert sum(c.finish_reason == "length" and c.num_tokens == num_tokens for c in completions) >= 6
