"""The loop beside time: groups that come late, loads beside training, checkpoints amid them, and other bounds."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, UserError
from tests.loop_parts import System, hold_group, make_config, make_system, until


async def test_a_group_that_comes_too_late_is_dropped_and_made_up_for(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=3, groups_per_step=1, max_staleness=1, on_stale="drop")
    slow, wrap = hold_group(config, group_id=1)
    system = await make_system(config, rollouts=wrap)
    system.learner.duration_s = 0.02
    system.records.on_step = lambda step: slow[0].release.set() if step == 2 else None
    await system.run()
    # Group 1 was sampled with version 0 and arrives when version 2 is trained; group 3 is made in its place, fresh.
    assert system.loop.ledger.dropped == {"stale": 1}
    assert system.records.group_ids == [[0], [2], [3]]
    assert system.records.column("staleness/max")[2] == 0.0


async def test_a_group_that_would_come_too_late_is_waited_for(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=3, groups_per_step=1, max_staleness=1, on_stale="wait")
    slow, wrap = hold_group(config, group_id=1)
    system = await make_system(config, rollouts=wrap)
    release = asyncio.create_task(until(lambda: system.loop.ledger.rounds == 1 and len(system.buffered()) == 1))
    release.add_done_callback(lambda task: slow[0].release.set())
    await system.run()
    # Group 2 was there first; with it version 2 would have been trained before group 1 of version 0.
    assert system.records.group_ids == [[0], [1], [2]]
    assert system.loop.ledger.dropped == {} and system.records.column("staleness/max") == [0.0, 1.0, 1.0]


async def test_a_long_group_holds_nothing_up_before_its_bound(tmp_path: Path) -> None:
    # The engine writes eight samples at once: all four groups begin with version 0.
    config = make_config(tmp_path, steps=5, groups_per_step=1, group_size=2, max_staleness=3)
    slow, wrap = hold_group(config, group_id=0)
    system = await make_system(config, rollouts=wrap)
    system.records.on_step = lambda step: slow[0].release.set() if step == 3 else None
    await system.run()
    # Three of them may be trained first; the fourth is waited for, though group 4 is there.
    ids = [i for ids in system.records.group_ids for i in ids]
    assert (sorted(ids[:3]), ids[3:]) == ([1, 2, 3], [0, 4])
    assert system.records.column("staleness/max")[:4] == [0.0, 1.0, 2.0, 3.0]


async def test_the_next_batch_is_trained_while_engines_load(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path, steps=4, max_staleness=1))
    # A load ends only after the learner has begun to train once more: without overlap it never would.
    system.weights.load_until = lambda: system.learner.calls >= min(4, len(system.weights.published) + 2)
    await system.run()
    assert system.weights.published == [1, 2, 3, 4]
    assert system.records.column("staleness/max") == [0.0, 1.0, 1.0, 1.0]
    # What a load measures belongs to the step in which it ended; the last step waits for its own.
    stalls = [m.get("weights/stall_share") for m in system.records.steps]
    assert stalls[0] is None and all(s is not None and 0 < s < 1 for s in stalls[1:])
    assert system.records.column("weights/wait_s")[3] > 0
    last = system.records.steps[-2]
    assert last["weights/stall_share"] == pytest.approx(last["weights/pause_s"] / last["time/step_s"])
    assert last["weights/stage_s"] == 0.25


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_a_load_that_fails_ends_the_run(tmp_path: Path, max_staleness: int) -> None:
    before = asyncio.all_tasks()
    config = make_config(tmp_path, steps=5, max_staleness=max_staleness)
    system = await make_system(config)

    def fail() -> bool:
        if system.loop.progress.step == 2:
            raise InfrastructureError("no rollout engine is left")
        return True

    system.weights.load_until = fail
    with pytest.raises(InfrastructureError, match="no rollout engine is left"):
        await system.run()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before and system.weights.published == [1]


async def test_a_checkpoint_beside_a_load_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=5, max_staleness=1, run={"checkpoint_every_steps": 1})
    first = await make_system(config)
    first.weights.load_until = lambda: first.learner.calls >= min(5, len(first.weights.published) + 2)
    await first.run()
    state, buffer = await first.store.load(tmp_path / "checkpoints" / "step_000002")
    # Two steps are trained, the engines serve the first one's weights: the round of the second is not open yet.
    assert (state["progress"]["policy_version"], state["ledger"]["rounds"]) == (2, 1)
    second = await make_system(config)
    await second.store.load(tmp_path / "checkpoints" / "step_000002")
    second.loop.restore(state, buffer)
    assert second.loop.ledger.rounds == 2
    await second.publish()
    await second.run()
    trained = [i for ids in first.records.group_ids[:2] + second.records.group_ids for i in ids]
    assert sorted(trained) == list(range(10)) and max(second.records.column("staleness/max")) <= 1


async def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=5, run={"checkpoint_every_steps": 2})
    whole = await make_system(config)
    await whole.run()
    resumed = await make_system(config)
    state, buffer = await resumed.store.load(tmp_path / "checkpoints" / "step_000002")
    resumed.loop.restore(state, buffer)
    await resumed.publish()
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
    await second.publish()
    await second.run()
    trained = [i for ids in first.records.group_ids + second.records.group_ids for i in ids]
    assert sorted(trained) == list(range(12))
    assert max(second.records.column("staleness/max")) <= 2


async def stopped_at(config: Config, step: int) -> System:
    """Return a system that stopped after a step, with everything that is ready in its buffer."""
    system = await make_system(config)
    system.learner.busy_until = lambda: len(system.loop.state()["making"]) <= config.groups_per_step
    stop = asyncio.Event()
    system.records.on_step = lambda done: stop.set() if done == step else None
    await system.run(stop)
    return system


async def test_a_resumed_run_may_lower_the_bound(tmp_path: Path) -> None:
    first = await stopped_at(make_config(tmp_path, steps=6, max_staleness=2), 3)
    newest = first.store.newest()
    assert newest is not None
    second = await make_system(make_config(tmp_path, steps=6, max_staleness=0))
    state, buffer = await second.store.load(newest)
    second.loop.restore(state, buffer)
    await second.publish()
    await second.run()
    # Six groups were open; the two that no longer fit into the next batch's bound are given up, whatever they are.
    assert second.loop.ledger.dropped["stale"] == 4 and second.records.column("step") == [4, 5, 6]
    assert max(second.records.column("staleness/max")) == 0
    trained = [i for ids in first.records.group_ids + second.records.group_ids for i in ids]
    assert len(set(trained)) == len(trained) == 12


async def test_a_resumed_run_keeps_its_batch_size(tmp_path: Path) -> None:
    first = await stopped_at(make_config(tmp_path, steps=6, max_staleness=1), 3)
    newest = first.store.newest()
    assert newest is not None
    second = await make_system(make_config(tmp_path, steps=6, groups_per_step=3, max_staleness=1))
    state, buffer = await second.store.load(newest)
    with pytest.raises(UserError, match="step 3 trained 6 groups, but groups_per_step=3: resume with groups_per_step="):
        second.loop.restore(state, buffer)
