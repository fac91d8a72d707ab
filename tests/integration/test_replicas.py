"""Replicas as small Ray actors: killed, frozen, failing ones are replaced; more and fewer; a budget that ends it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from launch.compose import compose
from launch.places import Place, Places
from launch.replica import Replica
from launch.replicas import ReplicaSet
from lwz_ray.concurrency import answered
from lwz_ray.errors import UserError
from lwz_ray.failures import FailureLog, budgets_of

pytestmark = pytest.mark.ray


@ray.remote
class Clerk:
    """Says who it is; refuses to start where it is told to."""

    def __init__(self, refuses: bool) -> None:
        self._refuses = refuses

    async def whereabouts(self) -> tuple[str, int]:
        if self._refuses:
            raise RuntimeError("no model of that name")
        return ray.get_runtime_context().get_node_id(), os.getpid()

    async def heartbeat(self) -> None:
        return None

    async def close(self) -> None:
        return None


class Office:
    """A room of clerks: keeps who takes part, and what was said of the others."""

    room, what, source = "rewards", "clerk", "reward_lost"

    def __init__(self) -> None:
        self.present: list[str] = []
        self.lost: list[tuple[str, str]] = []
        self.refusals = 0
        self.created: list[Any] = []

    def create(self, index: int, place: Place) -> Any:
        refuses, self.refusals = self.refusals > 0, max(0, self.refusals - 1)
        self.created.append(Clerk.options(num_cpus=0.1).remote(refuses))
        return self.created[-1]

    async def start(self, replica: Replica) -> None:
        replica.node_id, pid = await asyncio.wait_for(replica.handle.whereabouts.remote(), 60)
        replica.pids = (pid,)

    async def enter(self, replica: Replica) -> None:
        self.present.append(replica.name)

    async def beat(self, replica: Replica) -> None:
        await replica.handle.heartbeat.remote()

    async def leave(self, replica: Replica) -> None:
        self.present.remove(replica.name)

    def lose(self, replica: Replica, reason: str) -> None:
        self.present.remove(replica.name)
        self.lost.append((replica.name, reason))

    async def disarm(self, replica: Replica) -> None:
        return None


class Case:
    def __init__(self, office: Office, replicas: ReplicaSet, failures: FailureLog, warnings: list[str]) -> None:
        self.office, self.replicas, self.failures, self.warnings = office, replicas, failures, warnings

    def pid(self, name: str) -> int:
        return self.replicas.serving[name].pids[0]

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(1200):
            if holds():
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"not within 60 s; lost {self.office.lost}, warnings {self.warnings}")


@asynccontextmanager
async def a_room(tmp_path: Path, *words: str, num: int = 2) -> AsyncIterator[Case]:
    config = compose(
        [
            "run=smoke_cpu",
            f"run.dir={tmp_path}",
            "failures.heartbeat_every_s=0.1",
            "failures.heartbeat_timeout_s=1",
            "rewards.max_replicas=3",
            *words,
        ]
    )
    office, warnings = Office(), []
    failures = FailureLog(budgets_of(config.failures))
    places = Places(config)
    replicas = ReplicaSet(
        office, config.rewards, config.failures, places, failures, lambda source, message: warnings.append(message)
    )
    try:
        replicas.create([places.outside("rewards") for _ in range(num)])
        await replicas.start()
        await replicas.enter()
        yield Case(office, replicas, failures, warnings)
    finally:
        await replicas.close()


async def test_a_killed_replica_is_replaced(ray_cluster: None, tmp_path: Path) -> None:
    async with a_room(tmp_path) as case:
        os.kill(case.pid("1"), signal.SIGKILL)
        await case.until(lambda: case.office.present == ["2", "3"])
        assert [name for name, _ in case.office.lost] == ["1"]
        assert case.failures.counts["infrastructure"] == {"reward_lost": 1}
        assert (list(case.replicas.serving), case.replicas.num) == (["2", "3"], 2)
        assert case.replicas.serving["3"].index == 0, "its cores are free again"


async def test_a_frozen_replica_is_killed_and_replaced(ray_cluster: None, tmp_path: Path) -> None:
    async with a_room(tmp_path) as case:
        pid = case.pid("2")
        os.kill(pid, signal.SIGSTOP)
        await case.until(lambda: case.office.present == ["1", "3"])
        assert case.office.lost == [("2", "no sign of life for 1 s (failures.heartbeat_timeout_s)")]
        await case.until(lambda: not psutil.pid_exists(pid))


async def test_a_replica_whose_calls_keep_failing_is_replaced(ray_cluster: None, tmp_path: Path) -> None:
    async with a_room(tmp_path, num=1) as case:
        for number in range(3):
            assert case.office.lost == []
            case.replicas.suspect("1", f"nothing but noise {number}")
        assert case.office.lost == [("1", "3 calls failed within 300 s, the last: nothing but noise 2")]
        await case.until(lambda: case.office.present == ["2"])


async def test_more_and_fewer_within_bounds(ray_cluster: None, tmp_path: Path) -> None:
    async with a_room(tmp_path, "rewards.min_replicas=2") as case:
        assert await case.replicas.scale(3) == "rewards.replicas: 2 -> 3"
        assert case.office.present == ["1", "2", "3"]
        for num in (1, 4):
            with pytest.raises(UserError) as error:
                await case.replicas.scale(num)
            assert str(error.value) == (
                f"rewards.replicas={num} lies outside of rewards.min_replicas=2 and rewards.max_replicas=3, with which "
                "this run was started"
            )
        youngest = case.pid("3")
        assert await case.replicas.scale(2) == "rewards.replicas: 3 -> 2"
        assert case.office.present == ["1", "2"] and case.failures.counts["infrastructure"] == {}
        await case.until(lambda: not psutil.pid_exists(youngest))


async def test_fewer_while_the_one_that_would_go_is_lost(ray_cluster: None, tmp_path: Path) -> None:
    """It drains or it is lost, never both."""
    async with a_room(tmp_path) as case:
        scaling = asyncio.create_task(case.replicas.scale(1))
        asyncio.get_running_loop().call_soon(case.replicas.lost, "2", "killed at that moment")
        assert await scaling == "rewards.replicas: 2 -> 1"
        assert (case.office.present, case.office.lost) == (["1"], [])
        assert case.failures.counts["infrastructure"] == {}


async def test_where_one_of_several_does_not_start_all_stays_as_it_was(ray_cluster: None, tmp_path: Path) -> None:
    async with a_room(tmp_path, num=1) as case:
        case.office.refusals = 1
        with pytest.raises(RuntimeError, match="no model of that name"):
            await case.replicas.scale(3)
        assert (case.office.present, case.replicas.num) == (["1"], 1)
        assert await case.replicas.scale(2) == "rewards.replicas: 1 -> 2"


async def test_a_replacement_that_does_not_start_counts_too(ray_cluster: None, tmp_path: Path) -> None:
    """One loss and two failures to start are three, over a budget of 2: nothing is tried any more."""
    async with a_room(tmp_path, "failures.max_reward_losses=2") as case:
        case.office.refusals = 9
        os.kill(case.pid("1"), signal.SIGKILL)
        await asyncio.wait_for(case.failures.event.wait(), 60)
        reason = case.failures.exceeded or ""
        assert reason.startswith("reward_lost: 3 times, failures.max_reward_losses=2 allows no more; the last: a clerk")
        assert "did not start: RuntimeError: no model of that name" in reason
        assert (case.office.present, len(case.office.created)) == (["2"], 4)


async def test_a_lost_one_without_room_for_another_is_said_once(ray_cluster: None, tmp_path: Path) -> None:
    async with a_room(tmp_path, num=1) as case:
        places = case.replicas._places
        places._one["rewards"] = {"CPU": 100.0}  # the cluster has lost the node that it ran on
        case.replicas.lost("1", "its node is gone")
        await case.until(lambda: bool(case.warnings))
        assert case.warnings[0].startswith("a lost clerk is not replaced yet: 1 more reward replicas need 100 CPUs")
        places._one["rewards"] = {"CPU": 0.1}  # and another node has joined
        await case.until(lambda: case.office.present == ["2"])
        assert len(case.warnings) == 1


async def test_time_in_which_this_process_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of 3 slices that begins with a long standstill still ends well with an answer after it."""
    import time

    async def answer() -> str:
        await asyncio.sleep(0.01)
        time.sleep(3.2)  # noqa: ASYNC251 - the standstill: nothing else runs in this process
        await asyncio.sleep(0.01)
        return "here"

    assert await answered(answer(), 3.0) == "here"
    with pytest.raises(TimeoutError):
        await answered(asyncio.sleep(60), 0.05)
