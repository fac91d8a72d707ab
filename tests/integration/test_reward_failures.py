"""Each failure policy with real processes: reward workers on Ray that are killed while a loop trains."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lwz_ray.errors import InfrastructureError
from rewards.pool import RewardPool
from rewards.scorer import RewardSet
from tests.loop_parts import make_config, make_system

pytestmark = pytest.mark.ray


async def start_pool(folder: Path, config: Any, replicas: int) -> tuple[RewardPool, list[Any]]:
    """Return a pool of real reward workers that have loaded their model."""
    import ray

    from rewards.remote import RewardWorker, as_replica

    writing = config.rewards.writing.model_copy(update={"path": str(folder), "max_length_tokens": 256})
    actor: Any = RewardWorker  # ray.remote with arguments returns an actor class, its types say the plain one
    workers: list[Any] = [actor.options(num_cpus=0.1).remote(writing, 1, 0) for _ in range(replicas)]
    ray.get([w.ready.remote() for w in workers], timeout=120)
    return RewardPool([as_replica(w) for w in workers], writing.batch_size, request_timeout_s=10.0), workers


def rewards(policy: str, classifier: Path, **changes: Any) -> dict[str, Any]:
    return {
        "weights": {"length": 1.0, "writing": 1.0, "format": 1.0, "judge": 0.0, "function": 0.0},
        "on_failure": dict.fromkeys(("length", "writing", "format", "judge", "function"), policy),
        "retry_wait_s": 0.05,
        "max_failures_in_a_row": 1000,
        "writing": {**make_config(Path("runs")).rewards.writing.model_dump(), "path": str(classifier)},
    } | changes


@pytest.mark.parametrize("policy", ["retry", "abstain", "drop_group", "fail"])
async def test_every_reward_worker_dies_during_the_run(
    policy: str, ray_cluster: None, tiny_classifier_dir: Path, tmp_path: Path
) -> None:
    """With `abstain` the run goes on without the writing reward; the others end it, each with its own reason."""
    import ray

    caps = {"max_consecutive_dropped_groups": 6}
    config = make_config(tmp_path, steps=6, rewards=rewards(policy, tiny_classifier_dir), failures=caps)
    pool, workers = await start_pool(tiny_classifier_dir, config, 1)
    system = await make_system(config, scorer=RewardSet(config.rewards, pool))
    steps = system.records.steps

    def kill_after_two_steps(step: int) -> None:
        for worker in workers if step == 2 else ():
            ray.kill(worker)

    system.records.on_step = kill_after_two_steps
    if policy == "abstain":
        await asyncio.wait_for(system.loop.run(asyncio.Event()), 120)
        assert system.loop.progress.step == 6
        assert steps[0]["rewards/abstained"] == 0.0 and "rewards/writing" in steps[0]
        assert steps[5]["rewards/abstained"] == 8.0  # 2 groups of 4 samples
        assert "rewards/writing" not in steps[5] and steps[5]["rewards/length"] >= 0.0
        assert system.loop.ledger.dropped == {}
    else:
        reason = {
            "retry": "groups in a row were dropped, the last as reward_failed_writing",
            "drop_group": "groups in a row were dropped, the last as reward_failed_writing",
            "fail": r"the writing reward failed \(rewards.on_failure.writing=fail\)",
        }[policy]
        with pytest.raises(InfrastructureError, match=reason):
            await asyncio.wait_for(system.loop.run(asyncio.Event()), 120)
        assert 2 <= system.loop.progress.step < 6
        system.loop.ledger.check()
    await pool.close()


async def test_with_retry_a_run_outlives_one_of_two_workers(
    ray_cluster: None, tiny_classifier_dir: Path, tmp_path: Path
) -> None:
    import ray

    config = make_config(tmp_path, steps=5, rewards=rewards("retry", tiny_classifier_dir))
    pool, workers = await start_pool(tiny_classifier_dir, config, 2)
    system = await make_system(config, scorer=RewardSet(config.rewards, pool))
    steps = system.records.steps
    ray.kill(workers[0])
    await asyncio.wait_for(system.loop.run(asyncio.Event()), 120)
    assert system.loop.progress.step == 5 and system.loop.ledger.dropped == {}
    assert [m["rewards/failures"] for m in steps] == [0.0] * 5
    ray.kill(workers[1])
    await pool.close()
