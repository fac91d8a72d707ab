"""What ends a run and what does not: failed rewards and groups, budgets, a lost learner, errors of ours."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lwz_ray.errors import InfrastructureError, LearnerLostError, UserError
from lwz_ray.failures import BudgetExceededError, FailureLog
from lwz_ray.records import StepResult
from tests.loop_parts import FailingRollouts, FailingScorer, hold_group, make_config, make_system


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


async def test_too_many_steps_that_are_not_finite_fail_the_run(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path, failures={"max_consecutive_skipped_steps": 2}))
    system.learner.poisoned = {2, 3}
    with pytest.raises(BudgetExceededError, match="2 optimizer steps in a row had a loss or gradient that was not fin"):
        await system.run()
    newest = system.store.newest()
    assert len(system.records.steps) == 3 and newest is not None and newest.name == "step_000003"


async def test_groups_that_the_machines_fail_are_dropped_and_counted(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=3, max_staleness=1)
    lost = InfrastructureError("rollout-0 is gone")
    warnings: list[tuple[str, str]] = []
    failures = FailureLog({}, lambda source, message: warnings.append((source, message)))
    system = await make_system(
        config,
        rollouts=FailingRollouts.of(lambda i: lost if i in (1, 4) else None),
        failures=failures,
    )
    await system.run()
    assert system.loop.ledger.dropped == {"failed_infrastructure": 2}
    assert system.loop.ledger.admitted == 8 and system.loop.ledger.trained == 6
    assert failures.counts == {"infrastructure": {"group_failed": 2}, "data": {}, "bug": {}}
    assert warnings[0] == ("group_failed", "group 1: rollout-0 is gone")


async def test_machines_that_only_fail_end_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=9, max_staleness=1, failures={"max_consecutive_dropped_groups": 3})
    lost = InfrastructureError("rollout-0 is gone")
    system = await make_system(config, rollouts=FailingRollouts.of(lambda i: lost if i > 5 else None))
    message = "3 groups in a row were dropped, the last as failed_infrastructure: group .* rollout-0 is gone"
    with pytest.raises(BudgetExceededError, match=message):
        await system.run()
    newest = system.store.newest()
    assert newest is not None and newest.name == f"step_{system.loop.progress.step:06d}"


@pytest.mark.parametrize(("max_staleness", "kind"), [(0, "bug"), (2, "data")])
async def test_other_errors_fail_the_run_with_their_own_words(tmp_path: Path, max_staleness: int, kind: str) -> None:
    before = asyncio.all_tasks()
    error = RuntimeError("the counter broke") if kind == "bug" else UserError("the counter broke")
    system = await make_system(
        make_config(tmp_path, steps=9, max_staleness=max_staleness),
        rollouts=FailingRollouts.of(lambda i: error if i == 6 else None),
    )
    with pytest.raises(type(error), match="the counter broke"):
        await system.run()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert system.failures.counts[kind] == {"group_failed": 1} and system.loop.ledger.dropped == {}


async def test_an_exceeded_budget_stops_a_waiting_run_with_a_checkpoint(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=9, max_staleness=1)
    _, wrap = hold_group(config, group_id=4)
    failures = FailureLog({"rollout_lost": ("failures.max_rollout_losses", 1)})
    system = await make_system(config, rollouts=wrap, failures=failures)

    def lose(step: int) -> None:
        if step == 2:
            failures.record("rollout_lost", "rollout-0 was killed")
            asyncio.get_running_loop().call_later(0.1, failures.record, "rollout_lost", "rollout-1 was killed")

    system.records.on_step = lose
    message = "rollout_lost: 2 times, failures.max_rollout_losses=1 allows no more; the last: rollout-1 was killed"
    with pytest.raises(BudgetExceededError, match=message):
        await system.run()
    newest = system.store.newest()
    assert newest is not None and newest.name == "step_000002"
    state, _ = await system.store.load(newest)
    assert 4 in state["making"]


async def test_a_budget_exceeded_before_the_loop_goes_on_ends_it_at_once(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    failures = FailureLog({"rollout_lost": ("failures.max_rollout_losses", 0)})
    system = await make_system(make_config(tmp_path, steps=2), failures=failures)
    state = system.loop.state()
    system.loop.restore(state, [])  # its checkpoint is there: nothing is waited for before the groups are stopped
    failures.record("rollout_lost", "rollout-0 was killed")
    with pytest.raises(BudgetExceededError, match="rollout-0 was killed"):
        await system.run()
    assert asyncio.all_tasks() == before and system.loop.ledger.in_flight == 2


async def test_an_exceeded_budget_is_named_beside_a_checkpoint_that_fails(tmp_path: Path) -> None:
    failures = FailureLog({"rollout_lost": ("failures.max_rollout_losses", 0)})
    system = await make_system(make_config(tmp_path), failures=failures)
    failures.record("rollout_lost", "rollout-0 was killed")
    (tmp_path / "checkpoints").write_text("a file in the way", encoding="utf-8")
    with pytest.raises(BudgetExceededError, match=r"rollout-0 was killed; no checkpoint of step 0: .*checkpoints"):
        await system.run()


async def test_a_lost_learner_ends_the_run_at_once_and_a_checkpoint_takes_it_up(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    system = await make_system(make_config(tmp_path, steps=5, max_staleness=1, run={"checkpoint_every_steps": 2}))
    train = system.learner.train

    async def lost(minibatches: Any) -> StepResult:
        if system.learner.calls == 3:
            raise LearnerLostError("learner rank 1 does not answer")
        return await train(minibatches)

    system.learner.train = lost  # type: ignore[method-assign]
    with pytest.raises(LearnerLostError, match="learner rank 1 does not answer"):
        await system.run()
    await asyncio.sleep(0)
    left = {task.get_name() for task in asyncio.all_tasks() - before}
    assert left <= {"checkpoint of step 2"}  # the store's, and its business
    await system.store.abandon()
    system.loop.ledger.check()
    assert (system.loop.ledger.trained, system.loop.progress.step) == (6, 3)
    system.learner.train = train  # type: ignore[method-assign]
    newest = system.store.newest()
    assert newest is not None and newest.name == "step_000002"
    state, buffer = await system.store.load(newest)
    system.loop.restore(state, buffer)
    await system.publish()
    await system.run()
    assert system.records.column("step") == [1, 2, 3, 3, 4, 5]
    survived = [i for ids in system.records.group_ids[:2] + system.records.group_ids[3:] for i in ids]
    assert sorted(survived) == list(range(10))


async def test_an_error_from_outside_ends_a_waiting_run(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=5)
    _, wrap = hold_group(config, group_id=2)
    system = await make_system(config, rollouts=wrap)
    system.records.on_step = lambda step: asyncio.get_running_loop().call_later(
        0.05, system.loop.fail, LearnerLostError("learner rank 0 died")
    )  # type: ignore[assignment]
    with pytest.raises(LearnerLostError, match="learner rank 0 died"):
        await system.run()
