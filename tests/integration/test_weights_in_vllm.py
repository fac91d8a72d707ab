"""The weights in vLLM are the learner's: shown by logprobs, since a version label alone proves nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors.remote import RolloutActor, stream_of
from actors.worker import RolloutWorker
from launch.compose import compose
from launch.learner_room import learner_settings
from launch.probe import probe, probe_warning
from launch.weight_sync import StagedWeightSync
from lwz_ray.config import Config
from lwz_ray.records import Completion
from tests.rank_parts import PROMPT_IDS, Ranks, load_float32, mean_distance, minibatches
from tests.rollout_parts import collect, samples_of
from tests.weight_parts import InProcess

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
AGREE_NATS = 0.005
"""A token's mean distance of vLLM (bf16) from a float32 forward: seen 0.0008 of the same weights, 0.24 of the old."""
WORLD = 2


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


async def test_logprobs_follow_the_learner_through_an_update(
    vllm_worker: RolloutWorker, ranks: Ranks, config: Config, tiny_model_dir: Path, tmp_path: Path
):
    engine: Any = vllm_worker.engine
    temperature = engine.settings.temperature
    before = await collect(vllm_worker.stream(samples_of(PROMPT_IDS, 4, seed=1), timeout_s=60.0))
    result = await ranks.group.train(minibatches(before, config))
    assert (result.optimizer_steps, result.skipped) == (1, 0)

    version = engine.policy_version + 1
    paths = await ranks.stage(version)
    assert len(paths) > 1
    await vllm_worker.update(version, paths, timeout_s=60.0)
    after = await collect(vllm_worker.stream(samples_of(PROMPT_IDS, 4, seed=2), timeout_s=60.0))
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
    request = samples_of(prompt_token_ids, 1, seed=1)
    prompt, params = engine.sampling_of(request, request.tasks[0])
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
    running = [asyncio.create_task(collect(vllm_worker.stream(samples_of(PROMPT_IDS, 4, s), 120.0))) for s in (3, 4)]
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


class Elastic:
    """Two engines of one learner: `near`, on its node, and `late`, another process, taken to be on another node."""

    def __init__(self, ranks: Ranks, near: RolloutWorker, late: Any) -> None:
        self.failed: dict[str, str] = {}
        self.sync = StagedWeightSync(ranks.handles, "here", "auto", 60.0, self.failed.__setitem__)
        self.ranks, self.near, self.late = ranks, near, late
        self.calls = {"near": near.stream, "late": stream_of(late)}

    async def write(self, name: str, seed: int) -> list[Completion]:
        return await collect(self.calls[name](samples_of(PROMPT_IDS, 4, seed=seed), 60.0))

    async def probe(self) -> dict[str, Any]:
        return await probe(self.calls, self.ranks.group, PROMPT_IDS, 0.05, 60.0)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def late_engine(ray_cluster: None, vllm_worker: RolloutWorker) -> AsyncIterator[Any]:
    """Start a rollout Ray actor on the same model."""
    import ray

    actor: Any = RolloutActor
    settings = replace(vllm_worker.engine.settings, replica_index=1)
    handle = actor.options(num_cpus=0.2).remote(settings, ("/dev/shm", "/tmp"), 2**26)
    try:
        await asyncio.wait_for(handle.start.remote(), 240.0)
        yield handle
    finally:
        with contextlib.suppress(Exception):  # a test may have killed it
            await asyncio.wait_for(handle.close.remote(), 20.0)
        ray.kill(handle)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def elastic(ranks: Ranks, vllm_worker: RolloutWorker, late_engine: Any) -> Elastic:
    elastic = Elastic(ranks, vllm_worker, late_engine)
    await elastic.sync.join("near", InProcess(vllm_worker), "here")
    return elastic


async def test_a_late_engine_has_the_newest_weights_while_the_learner_trains(
    elastic: Elastic, config: Config, tiny_model_dir: Path, tmp_path: Path
):
    sync, handles = elastic.sync, elastic.ranks.handles
    before = minibatches(await elastic.write("near", seed=4), config)
    await elastic.ranks.group.train(before)
    metrics = await sync.stage(7) | await sync.load(7)
    assert metrics["weights/bytes"] == 2 * 3_244_352  # bf16, a tied head once
    await elastic.ranks.group.export(str(tmp_path))

    # Rank 0 is inside a training step, and stays there until rank 1 comes.
    plan = elastic.ranks.group._packed(before[0])
    training = asyncio.ensure_future(as_coroutine(handles[0].train.remote([plan[0]])))
    version = await asyncio.wait_for(sync.join("late", elastic.late, "elsewhere"), 120.0)
    assert not training.done()
    assert version == 7
    written = await elastic.write("late", seed=5)
    await asyncio.wait_for(asyncio.gather(training, handles[1].train.remote([plan[1]])), 60.0)

    assert {s.policy_version for c in written for s in c.version_spans} == {7}
    assert mean_distance(load_float32(tmp_path), written, 1.0) < AGREE_NATS
    assert mean_distance(load_float32(tiny_model_dir), written, 1.0) > 20 * AGREE_NATS


async def test_a_probe_tells_old_weights_from_the_newest(elastic: Elastic, config: Config):
    sync = elastic.sync
    await sync.join("late", elastic.late, "elsewhere")
    await elastic.ranks.group.train(minibatches(await elastic.write("near", seed=6), config))
    await sync.stage(8)
    await sync.load(8)  # by files to one engine, through the object store to the other
    same = await elastic.probe()
    assert same["off"] == [] and probe_warning(same) is None

    sync.leave("late")
    await elastic.ranks.group.train(minibatches(await elastic.write("near", seed=7), config))
    await sync.stage(9)
    await sync.load(9)
    found = await elastic.probe()
    assert found["off"] == ["late"]
    assert found["engines"]["near"]["mean"] < AGREE_NATS
    assert found["engines"]["late"]["mean"] > 20 * AGREE_NATS
    assert found["engines"]["near"]["num_tokens"] == found["engines"]["late"]["num_tokens"] == 4 * 32
    warning = probe_warning(found)
    assert warning is not None and warning.startswith("1 of 2 rollout engines do not answer as the learner's weights")

    assert await sync.join("late", elastic.late, "elsewhere") == 9
    assert (await elastic.probe())["off"] == []


async def test_an_engine_that_dies_is_left_out_and_the_others_go_on(elastic: Elastic, config: Config):
    import ray

    sync = elastic.sync
    await sync.join("late", elastic.late, "elsewhere")
    await elastic.ranks.group.train(minibatches(await elastic.write("near", seed=8), config))
    await sync.stage(10)
    ray.kill(elastic.late)
    await sync.load(10)
    assert list(elastic.failed) == ["late"]
    assert elastic.failed["late"].startswith("policy version 10 was not loaded: ")
    found = await elastic.probe()
    assert found["off"] == ["late"] and "error" in found["engines"]["late"]
    assert found["engines"]["near"]["mean"] < AGREE_NATS


async def as_coroutine(reference: Any) -> Any:
    return await reference
