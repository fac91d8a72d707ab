"""Resident memory by room, read from real processes."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from launch.memory_watch import MemoryWatch, actors_here, combined, resident_mib, with_children

HOLD = "import sys; held = bytearray(64 * 2**20); print('ready', flush=True); sys.stdin.read()"
PARENT = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {HOLD!r}]))"


@pytest.fixture
def parent() -> Iterator[int]:
    """Run a process whose child holds 64 MiB; return its id."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate(timeout=30)


def test_a_room_is_the_sum_of_its_processes_with_those_below(parent: int) -> None:
    alone = resident_mib([psutil.Process(parent)])
    found = MemoryWatch(lambda: {"actors": [parent]}).metrics()
    assert sorted(found) == ["memory/actors_mib", "memory/driver_mib"]
    # The child holds 64 MiB of its own and an interpreter.
    assert 64 < found["memory/actors_mib"] - alone < 96
    assert abs(found["memory/driver_mib"] - psutil.Process().memory_info().rss / 2**20) < 32


def test_a_room_elsewhere_has_no_number_and_the_reason_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="launch.memory_watch")
    watch = MemoryWatch(dict)
    assert list(watch.metrics()) == list(watch.metrics()) == ["memory/driver_mib"]
    assert [r.getMessage() for r in caplog.records] == [
        f"memory/{room}_mib: not measured, no Ray actor of that room runs on this node"
        for room in ("actors", "rewards", "learners")
    ]


def test_a_process_that_has_ended_holds_nothing(parent: int) -> None:
    processes = with_children(parent)
    assert len(processes) == 2
    psutil.Process(parent).children()[0].kill()
    processes[0].wait(30)
    assert resident_mib(processes) == 0.0
    assert with_children(parent) == []


def test_sources_of_metrics_become_one() -> None:
    assert combined(lambda: {"pool/a": 1.0}, dict, lambda: {"memory/b": 2.0})() == {
        "pool/a": 1.0,
        "memory/b": 2.0,
    }


@pytest.mark.ray
def test_ray_tells_the_processes_of_each_room(ray_cluster: None) -> None:
    import os

    import ray

    class RewardWorker:
        def pid(self) -> int:
            return os.getpid()

    class Bystander(RewardWorker):
        pass

    remote = ray.remote(num_cpus=0)
    workers: list[Any] = [remote(kind).remote() for kind in (RewardWorker, Bystander)]
    pids = ray.get([w.pid.remote() for w in workers], timeout=60)
    try:
        found = actors_here()
        assert pids[0] in found["rewards"]
        assert pids[1] not in [pid for room in found.values() for pid in room]
    finally:
        for worker in workers:
            ray.kill(worker)
