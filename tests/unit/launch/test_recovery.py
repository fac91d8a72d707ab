"""Attempts within one job, over learners in this process that are lost when a test says so."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from launch.checkpoints import CheckpointStore
from launch.files import read_json
from launch.recovery import Recovery
from launch.run_folder import RunFolder
from lwz_ray.errors import LearnerLostError
from lwz_ray.failures import BudgetExceededError, FailureLog, budgets_of
from tests.loop_parts import make_config
from tests.table_learner import TableLearner
from tests.unit.launch.test_checkpoints import HeldLearner, save_all


class Side:
    """A learner that is lost when its work raises; the next one starts with a table of zeros."""

    def __init__(self, config: Any, story: list[str]) -> None:
        self._config, self._story = config, story
        self.learner: TableLearner = HeldLearner(config)
        self.fails_to_start = 0

    async def guard(self, work: Awaitable[None]) -> None:
        await work

    async def kill(self) -> None:
        self._story.append("kill")

    async def restart(self) -> None:
        if self.fails_to_start:
            self.fails_to_start -= 1
            raise LearnerLostError("the learner group did not start again: no room")
        self._story.append("start")
        self.learner = HeldLearner(self._config)


class Job:
    """What `Recovery` works on."""

    def __init__(self, folder: Path, restarts: int) -> None:
        self.config = make_config(folder, failures={"max_learner_restarts": restarts})
        self.folder = RunFolder.open(self.config, environ={})
        self.store = CheckpointStore(self.folder.checkpoints, {"model": "bigram"}, self.config.run, 20.0)
        self.story: list[str] = []
        self.side: Any = Side(self.config, self.story)
        self.stop = asyncio.Event()
        self.failures = FailureLog(budgets_of(self.config.failures), self.folder.warn)

    async def run(self, attempt: Callable[[Path | None], Awaitable[None]]) -> None:
        recovery = Recovery(self.side, self.side.restart, self.folder, self.store, self.failures, self.story.append)
        await asyncio.wait_for(recovery.run(attempt, self.store.newest(), self.stop), 20.0)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, restarts=2)


def test_an_attempt_goes_on_from_the_newest_complete_checkpoint(job: Job):
    """The one under way is given up: its files were not all written."""
    seen: list[tuple[int, str | None]] = []

    async def attempt(newest: Path | None) -> None:
        seen.append((job.folder.attempt, None if newest is None else newest.name))
        learner = job.side.learner
        job.store.attach(learner)
        if newest is not None:
            state, _ = await job.store.load(newest)
            assert (state["step"], learner.table.sum().item()) == (3, 128.0)
            return
        if len(seen) == 2:
            learner.fill(2.0)
            await job.store.save(3, {"step": 3}, [], {})
            await job.store.wait()
            learner.release.clear()
            learner.fault = LearnerLostError("learner rank 0 was lost: killed")
            await job.store.save(4, {"step": 4}, [], {})
            asyncio.get_running_loop().call_soon(learner.release.set)
        raise LearnerLostError("learner rank 1 was lost: killed")

    asyncio.run(job.run(attempt))
    assert seen == [(1, None), (2, None), (3, "step_000003")]
    lost = "learner rank 1 was lost: killed; starting the learners again, from"
    assert job.story == ["kill", f"{lost} the beginning", "start", "kill", f"{lost} step_000003", "start"]
    assert read_json(job.folder.manifest)["reason"] == "learner rank 1 was lost: killed"
    assert job.failures.counts["infrastructure"] == {"learner_restart": 2}
    assert [p.name[:12] for p in job.folder.checkpoints.glob(".*")] == [".step_000004"]
    job.store.attach(job.side.learner)
    asyncio.run(save_all(job.store, {5: {}}))
    assert sorted(p.name for p in job.folder.checkpoints.iterdir()) == ["step_000003", "step_000005"]


def test_learners_that_do_not_come_again_use_the_budget_up(job: Job):
    job.side.fails_to_start = 9

    async def attempt(newest: Path | None) -> None:
        raise LearnerLostError("learner rank 0 was lost: out of memory")

    with pytest.raises(BudgetExceededError) as caught:
        asyncio.run(job.run(attempt))
    assert str(caught.value) == (
        "learner_restart: 3 times, failures.max_learner_restarts=2 allows no more; the last: "
        "the learner group did not start again: no room"
    )
    assert job.folder.attempt == 1
    assert len(job.folder.warnings.read_text().splitlines()) == 3


def test_a_loss_while_the_run_ends_is_not_recovered(job: Job):
    async def attempt(newest: Path | None) -> None:
        job.stop.set()
        raise LearnerLostError("learner rank 0 was lost: killed")

    asyncio.run(job.run(attempt))
    assert job.story == ["learner rank 0 was lost: killed; the run was to end anyway: there is no checkpoint"]


def test_any_other_error_ends_the_run(job: Job):
    async def attempt(newest: Path | None) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(job.run(attempt))
    assert job.story == []
