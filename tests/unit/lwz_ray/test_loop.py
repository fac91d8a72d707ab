"""The whole loop in one process, in milliseconds: staleness, accounting, failures, stopping, resuming, learning."""

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest

from lwz_ray.records import Sample
from tests.loop_parts import (
    SlowRollouts,
    System,
    make_config,
    make_system,
)


def watch_open_groups(system: System) -> list[int]:
    """Return a list that gets the number of groups in flight at each staging."""
    counts: list[int] = []
    system.weights.on_stage = lambda version: counts.append(system.loop.ledger.in_flight)
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
    # A step lasts until the weights of the one before are loaded and the round beside it, if there is one, is made:
    # only the batch's own two groups are in flight and not in the buffer.
    system.learner.busy_until = lambda: loop.ledger.rounds == loop.progress.step and len(loop.state()["making"]) == 2
    await system.run()
    # One round is being made while the other trains; before the last step none is needed any more.
    assert open_groups == [2, 2, 2, 2, 2, 0]
    assert system.records.column("staleness/max") == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert system.loop.ledger.as_dict() == {"rounds": 6, "admitted": 12, "trained": 12, "dropped": {}, "in_flight": 0}


async def test_a_step_that_is_not_finite_is_counted_and_publishes_nothing(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path, steps=3, max_staleness=1))
    system.learner.poisoned = {2}
    await system.run()
    progress = system.loop.progress
    assert (progress.step, progress.optimizer_steps, progress.skipped_steps, progress.policy_version) == (3, 2, 1, 2)
    assert system.weights.published == [1, 2]
    assert system.records.column("policy_version") == [1, 1, 2]
    assert "train/loss" not in system.records.steps[1]


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
