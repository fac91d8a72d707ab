"""The reward pool over real Ray actors: scores, a killed replica, a refused model."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lwz_ray.config import WritingRewardConfig
from lwz_ray.errors import UserError
from rewards.classifier import load_classifier
from rewards.pool import RewardPool

pytestmark = pytest.mark.ray
PROMPTS = ["Write about tea."] * 5
TEXTS = ["Tea is a leaf.", "Coffee.", "A habit, warm and green.", "", "茶是叶子。"]


def writing(path: str) -> WritingRewardConfig:
    return WritingRewardConfig(
        path=path,
        engine="transformers",
        max_length_tokens=128,
        batch_size=2,
        dtype="float32",
        kv_cache_mib=64,
        memory_utilization=0.1,
        window_overlap_tokens=16,
        max_windows=4,
        aggregation="mean",
    )


async def test_two_replicas_score_and_one_survives_the_other(ray_cluster: None, tiny_classifier_dir: Path) -> None:
    import ray

    from rewards.remote import RewardWorker, as_replica

    config = writing(str(tiny_classifier_dir))
    actor: Any = RewardWorker  # ray.remote with arguments returns an actor class, its types say the plain one
    workers: list[Any] = [actor.options(num_cpus=0.1).remote(config, 1, 0) for _ in range(2)]
    assert ray.get([w.ready.remote() for w in workers], timeout=120) == [True, True]
    pool = RewardPool([as_replica(w) for w in workers], config.batch_size, request_timeout_s=60)
    expected = load_classifier(config, threads=1, num_gpus=0).score(PROMPTS, TEXTS).values
    assert await pool.score_texts(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-4)
    assert pool.num_retries == 0
    ray.kill(workers[0])
    assert await pool.score_texts(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-4)
    assert pool.num_retries >= 1
    ray.kill(workers[1])


async def test_an_error_of_the_user_comes_through_ray_as_itself(ray_cluster: None, tiny_classifier_dir: Path) -> None:
    import ray

    from rewards.remote import RewardWorker, as_replica

    actor: Any = RewardWorker  # ray.remote with arguments returns an actor class, its types say the plain one
    worker: Any = actor.options(num_cpus=0.1).remote(writing(str(tiny_classifier_dir)), 1, 0)
    pool = RewardPool([as_replica(worker)], 2, request_timeout_s=120)
    with pytest.raises(UserError, match="leaves no room for an answer"):
        await pool.score_texts(["tea " * 300], ["An answer."])
    ray.kill(worker)


def lengths(num: int) -> list[str]:
    """Return texts of many lengths, some over the model's context."""
    return [" ".join(f"tea{i % 7}" for i in range(1 + 5 * n % 90)) + f" {n}" for n in range(num)]


async def test_replicas_come_and_go_while_requests_are_in_flight(
    ray_cluster: None, tiny_classifier_dir: Path, tmp_path: Path
) -> None:
    """1 -> 3 -> 1 replicas, then one that is killed and replaced: all are answered once, with a fixed pool's scores."""
    import ray

    from launch.compose import compose
    from launch.places import Places
    from launch.reward_replicas import RewardReplicas
    from lwz_ray.failures import FailureLog

    words = ["run=smoke_cpu", f"run.dir={tmp_path}", "rewards.replicas=1", "rewards.writing.max_length_tokens=128"]
    words += [f"rewards.writing.path={tiny_classifier_dir}", "rewards.writing.dtype=float32"]
    config = compose([*words, "rewards.writing.batch_size=4", "failures.heartbeat_every_s=0.2"])
    texts = lengths(200)
    prompts = [f"Write {n} words." for n in range(200)]
    expected = load_classifier(config.rewards.writing, threads=1, num_gpus=0).score(prompts, texts)
    places, losses = Places(config), list[str]()
    replicas = RewardReplicas(config, places, FailureLog({}, lambda source, message: losses.append(message)))
    try:
        replicas.begin([places.outside("rewards")])
        await replicas.replicas.start()
        await replicas.open()
        pool = replicas.pool
        assert pool is not None
        requests = [asyncio.create_task(pool.score_one(p, t)) for p, t in zip(prompts, texts, strict=True)]
        assert await replicas.scale(3) == "rewards.replicas: 1 -> 3"
        requests += [asyncio.create_task(pool.score_one(p, t)) for p, t in zip(prompts, texts, strict=True)]
        assert await replicas.scale(1) == "rewards.replicas: 3 -> 1"
        scores = await asyncio.gather(*requests)
        assert [s.value for s in scores] == pytest.approx([*expected.values] * 2, abs=1e-4)
        assert [s.coverage for s in scores] == [*expected.coverage] * 2
        assert (pool.counters.total.texts, pool.num_retries, losses) == (400, 0, [])

        requests = [asyncio.create_task(pool.score_one(p, t)) for p, t in zip(prompts, texts, strict=True)]
        await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
        ray.kill(next(iter(replicas.replicas.serving.values())).handle)
        assert [s.value for s in await asyncio.gather(*requests)] == pytest.approx(expected.values, abs=1e-4)
        assert (pool.counters.total.texts, pool.num_replicas, len(losses)) == (600, 1, 1)
        assert losses[0].startswith("reward replica 1 on node ")
        with pytest.raises(UserError, match=r"500 more reward replicas need 50 CPUs, this run holds 0\.1 of the"):
            await replicas.scale(501)
    finally:
        await replicas.close()
