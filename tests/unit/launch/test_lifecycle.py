"""A stage's end: whatever happens there is a summary, unless the run folder is another driver's."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from launch.lease import FOLDER, LeaseLostError
from launch.stages.lifecycle import Lifecycle, leased
from launch.summary import Status
from lwz_ray.failures import BudgetExceededError

Ends = list[tuple[Status, str | None]]


def run(config, work, ends: Ends) -> int:
    with leased(config) as lease:
        life = Lifecycle(config, lease)
        return asyncio.run(asyncio.wait_for(life.run(lambda: work(life), lambda s, e: ends.append((s, e))), 20.0))


def test_a_driver_whose_lease_is_taken_stops_without_a_summary(make_config):
    config, ends, cancelled = make_config(), Ends(), []
    folder = Path(config.run.dir) / config.run.name / FOLDER

    async def work(life: Lifecycle) -> None:
        life.graceful = True
        told = json.loads((folder / "000001.json").read_text())
        (folder / "000002.json").write_text(json.dumps({**told, "host": "far", "pid": 77}))
        try:
            await asyncio.sleep(15.0)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(LeaseLostError, match=r"trial was taken over by process 77 on far since .* writes nothing more"):
        run(config, work, ends)
    assert (ends, cancelled) == ([], [True])


def test_work_that_ends_by_itself_after_a_stop_is_waited_for(make_config):
    ends = Ends()

    async def work(life: Lifecycle) -> None:
        life.graceful = True
        life.stop.set()
        await asyncio.sleep(0.2)
        ends.append(("interrupted", "the work's own end"))

    assert run(make_config(), work, ends) == 130
    assert ends == [("interrupted", "the work's own end"), ("interrupted", None)]


def test_work_that_is_not_graceful_is_cancelled_by_a_stop(make_config):
    ends = Ends()

    async def work(life: Lifecycle) -> None:
        life.stop.set()
        await asyncio.sleep(15.0)

    assert run(make_config(), work, ends) == 130
    assert ends == [("interrupted", None)]


def test_an_exceeded_budget_is_the_reason_by_itself(make_config):
    ends = Ends()

    async def work(life: Lifecycle) -> None:
        raise BudgetExceededError("learner_restart: 3 times, failures.max_learner_restarts=2 allows no more")

    with pytest.raises(BudgetExceededError):
        run(make_config(), work, ends)
    assert ends == [("failed", "learner_restart: 3 times, failures.max_learner_restarts=2 allows no more")]
    with leased(make_config()) as lease:  # it was given back
        lease.check()


def test_a_signal_that_comes_too_late_is_noted_and_the_run_has_completed(make_config):
    before, asked = signal.getsignal(signal.SIGTERM), Lifecycle.stops_asked

    async def work(life: Lifecycle) -> None:
        life.finished = True

    def end(status: Status, error: str | None) -> None:
        signal.raise_signal(signal.SIGTERM)  # the event loop stands still here
        assert (status, error) == ("completed", None)

    config = make_config()
    with leased(config) as lease:
        life = Lifecycle(config, lease)
        assert asyncio.run(asyncio.wait_for(life.run(lambda: work(life), end), 20.0)) == 0
    assert Lifecycle.stops_asked == asked + 1
    assert signal.getsignal(signal.SIGTERM) is before
