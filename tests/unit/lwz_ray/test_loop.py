"""The whole loop in one process, in milliseconds: staleness, accounting, failures, stopping, resuming, learning."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.streams import CompletionStream
from actors.tiny_engine import TinyEngine
from lwz_ray.errors import InfrastructureError
from lwz_ray.records import RolloutRequest, Sample
from tests.loop_parts import FailingScorer, SlowRollouts, System, make_config, make_system


def watch_open_groups(system: System) -> list[int]:
    """Return a list that gets the number of groups in flight at each publication."""
    counts: list[int] = []
    system.weights.on_publish = lambda version: counts.append(system.loop.ledger.in_flight)
    return counts


async def test_synchronous_training_publishes_with_no_group_open(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path, steps=5, max_staleness=0))
    open_groups = watch_open_groups(system)
    system.learner.duration_s = 0.005
    await system.run()
    assert open_groups == [0] * 5
    assert system.records.column("staleness/max") == [0.0] * 5
    assert system.records.column("policy_version") == system.weights.published == [1, 2, 3, 4, 5]
    assert system.records.group_ids == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    # The engine trained on is the engine sampled from: the ratio is 1 up to float32.
    assert max(system.records.column("train/mismatch")) < 1e-6


async def test_staleness_one_overlaps_and_stays_within_one(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path, steps=6, max_staleness=1))
    open_groups = watch_open_groups(system)
    loop = system.loop
    # A step lasts until the round beside it is made, if there is one: in flight are then its two groups and two more.
    system.learner.busy_until = lambda: loop.ledger.in_flight == 2 or len(loop.state()["making"]) == 2
    await system.run()
    # One round is being made while the other trains; before the last step none is needed any more.
    assert open_groups == [2, 2, 2, 2, 2, 0]
    assert system.records.column("staleness/max") == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert system.loop.ledger.as_dict() == {"rounds": 6, "admitted": 12, "trained": 12, "dropped": {}, "in_flight": 0}


@pytest.mark.parametrize(
    ("on_stale", "dropped", "groups"), [("drop", {"stale": 1}, [[0], [2], [3]]), ("train", {}, [[0], [2], [1]])]
)
async def test_a_group_that_comes_too_late(tmp_path: Path, on_stale: str, dropped: dict, groups: list) -> None:
    config = make_config(tmp_path, steps=3, groups_per_step=1, max_staleness=1, on_stale=on_stale)
    slow: list[SlowRollouts] = []

    def hold_group_1(inner: Any) -> SlowRollouts:
        slow.append(SlowRollouts(inner, config.seed, group_id=1))
        return slow[0]

    system = await make_system(config, rollouts=hold_group_1)
    system.learner.duration_s = 0.02
    system.records.on_step = lambda step: slow[0].release.set() if step == 2 else None
    await system.run()
    # Group 1 was sampled with version 0 and arrives when version 2 is trained; group 3 is made in its place, fresh.
    assert system.loop.ledger.dropped == dropped
    assert system.records.group_ids == groups
    assert system.records.column("staleness/max")[2] == (2.0 if on_stale == "train" else 0.0)


async def test_a_failed_reward_drops_its_group_by_reason_and_another_takes_its_place(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=2)
    system = await make_system(config, FailingScorer(config, lambda call: call == 1))
    await system.run()
    account = system.loop.ledger.as_dict()
    assert account == {"rounds": 2, "admitted": 5, "trained": 4, "dropped": {"reward_failed_length": 1}, "in_flight": 0}
    trained = [i for ids in system.records.group_ids for i in ids]
    assert len(set(trained)) == 4 and set(trained) < set(range(5))


async def test_a_failed_reward_that_steers_nothing_drops_nothing(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=1, rewards={"weights": {"length": 0.0, "writing": 0.0, "format": 1.0}})
    system = await make_system(config, FailingScorer(config, lambda call: True))
    await system.run()
    assert system.loop.ledger.dropped == {}
    assert system.records.column("rewards/failures") == [8.0]


async def test_too_many_failed_groups_in_a_row_fail_the_run(tmp_path: Path) -> None:
    config = make_config(tmp_path, failures={"max_consecutive_dropped_groups": 3})
    system = await make_system(config, FailingScorer(config, lambda call: True))
    message = "3 groups in a row were dropped, the last as reward_failed_length: the counter broke"
    with pytest.raises(InfrastructureError, match=message):
        await system.run()
    assert system.records.steps == []


async def test_a_step_that_is_not_finite_is_counted_and_publishes_nothing(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path, steps=3, max_staleness=1))
    system.learner.poisoned = {2}
    await system.run()
    progress = system.loop.progress
    assert (progress.step, progress.optimizer_steps, progress.skipped_steps, progress.policy_version) == (3, 2, 1, 2)
    assert system.weights.published == [1, 2]
    assert system.records.column("policy_version") == [1, 1, 2]
    assert "train/loss" not in system.records.steps[1]


async def test_too_many_steps_that_are_not_finite_fail_the_run(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path, failures={"max_consecutive_skipped_steps": 2}))
    system.learner.poisoned = {2, 3}
    with pytest.raises(InfrastructureError, match="2 optimizer steps in a row had a loss or gradient that was not fin"):
        await system.run()
    assert len(system.records.steps) == 2


async def test_stopping_ends_after_the_step_with_a_checkpoint_and_no_task_left(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    system = await make_system(make_config(tmp_path, steps=50, max_staleness=1))
    stop = asyncio.Event()
    system.records.on_step = lambda step: stop.set() if step == 2 else None
    await system.run(stop)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    newest = system.store.newest()
    assert newest is not None and newest.name == "step_000002"
    assert len(system.records.steps) == 2


@pytest.mark.parametrize("steps_before", [0, 1])
async def test_stopping_while_groups_are_being_made(tmp_path: Path, steps_before: int) -> None:
    config = make_config(tmp_path, steps=5)
    system = await make_system(config, rollouts=lambda inner: SlowRollouts(inner, config.seed, 2 * steps_before))
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, stop.set)
    await system.run(stop)
    newest = system.store.newest()
    assert newest is not None and newest.name == f"step_{steps_before:06d}"
    state, _ = await system.store.load(newest)
    assert 2 * steps_before in state["making"]


async def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=5, run={"checkpoint_every_steps": 2})
    whole = await make_system(config)
    await whole.run()
    resumed = await make_system(config)
    state, buffer = await resumed.store.load(tmp_path / "checkpoints" / "step_000002")
    resumed.loop.restore(state, buffer)
    await resumed.weights.publish(resumed.loop.progress.policy_version)
    await resumed.run()
    assert resumed.records.column("step") == [3, 4, 5]
    assert resumed.records.group_ids == whole.records.group_ids[2:] == [[4, 5], [6, 7], [8, 9]]
    assert resumed.records.column("train/loss") == whole.records.column("train/loss")[2:]
    np.testing.assert_array_equal(resumed.learner.logits.detach(), whole.learner.logits.detach())
    assert resumed.loop.progress == whole.loop.progress


async def test_a_resumed_asynchronous_run_trains_every_group_once(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=6, max_staleness=2)
    first = await make_system(config)
    first.learner.duration_s = 0.01
    stop = asyncio.Event()
    first.records.on_step = lambda step: stop.set() if step == 3 else None
    await first.run(stop)
    second = await make_system(config)
    newest = second.store.newest()
    assert newest is not None
    state, buffer = await second.store.load(newest)
    assert len(state["making"]) + len(buffer) == 6  # three rounds open, the next one among them
    second.loop.restore(state, buffer)
    await second.weights.publish(second.loop.progress.policy_version)
    await second.run()
    trained = [i for ids in first.records.group_ids + second.records.group_ids for i in ids]
    assert sorted(trained) == list(range(12))
    assert max(second.records.column("staleness/max")) <= 2


class BrokenEngine(TinyEngine):
    """Fails at the sixth request."""

    async def stream(self, request: RolloutRequest, request_id: str) -> CompletionStream:
        if request_id == "r6":
            raise RuntimeError("the engine lost its memory")
        async for item in super().stream(request, request_id):
            yield item


@pytest.mark.parametrize("max_staleness", [0, 2])
async def test_an_engine_error_fails_the_run_with_its_own_words(tmp_path: Path, max_staleness: int) -> None:
    before = asyncio.all_tasks()
    system = await make_system(make_config(tmp_path, steps=9, max_staleness=max_staleness), engine=BrokenEngine)
    with pytest.raises(RuntimeError, match="the engine lost its memory"):
        await system.run()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_evaluation_runs_between_steps(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path, steps=6, eval={"every_steps": 2}))
    await system.run()
    assert system.evaluated == [2, 4]  # the stage evaluates the last step itself
    assert [m.get("eval/total") for m in system.records.steps] == [None, 0.5, None, 0.5, None, None]


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_it_learns(tmp_path: Path, max_staleness: int) -> None:
    system = await make_system(make_config(tmp_path, steps=25, group_size=8, max_staleness=max_staleness))
    await system.run()
    rewards = system.records.column("rewards/total")
    # An answer of one to three words that is closed: seen to rise from about 0.55 to 0.95 and above.
    assert np.mean(rewards[:4]) < 0.7
    assert np.mean(rewards[-4:]) > 0.9


async def test_looping_rollouts_end_early_and_are_trained(tmp_path: Path) -> None:
    """Two equal tokens in a row count as a loop here."""
    rule = {
        "enabled": True, "max_pattern_tokens": 1, "min_repeats": 2, "min_looping_tokens": 2, "check_every_tokens": 1,
    }  # fmt: skip
    changes = {"sampling": {"max_tokens": 30, "temperature": 0.9}}
    config = make_config(tmp_path, steps=2, actors={"request_timeout_s": 5.0, "repetition_stop": rule}, **changes)
    system = await make_system(config)
    samples: list[Sample] = []
    system.records.on_samples = samples.extend
    await system.run()
    assert len(samples) == 16
    looping = [s.completion for s in samples if s.completion.finish_reason == "repetition"]
    assert looping
    for completion in (s.completion for s in samples):
        repeats = [a == b for a, b in itertools.pairwise(completion.token_ids.tolist())]
        assert not any(repeats[:-1])
        assert repeats[-1:] == [True] or completion.finish_reason != "repetition"
    assert max(c.num_tokens for c in looping) < 30
