"""The reward pool over real Ray actors: scores, a killed replica, a refused model."""

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
    )


async def test_two_replicas_score_and_one_survives_the_other(ray_cluster: None, tiny_classifier_dir: Path) -> None:
    import ray

    from rewards.remote import RewardWorker, as_replica

    config = writing(str(tiny_classifier_dir))
    workers: list[Any] = [RewardWorker.options(num_cpus=0.1).remote(config, 1, 0) for _ in range(2)]
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

    worker: Any = RewardWorker.options(num_cpus=0.1).remote(writing(str(tiny_classifier_dir)), 1, 0)
    pool = RewardPool([as_replica(worker)], 2, request_timeout_s=120)
    with pytest.raises(UserError, match="leaves no room for an answer"):
        await pool.score_texts(["tea " * 300], ["An answer."])
    ray.kill(worker)
