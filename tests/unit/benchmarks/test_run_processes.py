"""Processes of a run are found below its driver, by title, and no others are touched."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.run_processes import RunProcesses, is_alive, pin
from lwz_ray.errors import WaitTimeoutError

SLEEP = "import sys, time; print('ready', flush=True); time.sleep(300)"
DRIVER = """
import subprocess, sys
for title in sys.argv[2:]:
    child = subprocess.Popen(
        [title, "-c", sys.argv[1]], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
"""
LATE = "import subprocess, sys; print('ready', flush=True); sys.stdin.read(); subprocess.run(['sleep', '300'])"
"""Starts a process once its parent has ended."""
TITLES = ("ray::RolloutActor.stream", "ray::LearnerActor", "VLLM::EngineCore", "ray::LearnerActor.train", "ray::IDLE")


def driver(*titles: str, code: str = SLEEP) -> "subprocess.Popen[bytes]":
    """Start a process with a child under each title, which runs `code`."""
    started = subprocess.Popen(
        [sys.executable, "-c", DRIVER, code, *titles], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert started.stdout is not None and started.stdout.readline() == b"ready\n"
    return started


@pytest.fixture
def run() -> Iterator[RunProcesses]:
    with driver(*TITLES) as started:
        processes = RunProcesses(started.pid)
        yield processes
        processes.kill_all()


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    with driver("ray::RolloutActor") as started:
        yield psutil.Process(started.pid)
        RunProcesses(started.pid).kill_all()


def test_kinds_are_told_by_their_titles(run: RunProcesses, bystander: psutil.Process) -> None:
    assert [len(run.of_kind(kind)) for kind in ("rollout", "engine", "reward", "learner")] == [1, 1, 0, 2]
    assert run.of_kind("rollout")[0].ppid() == run.driver.pid
    learners = run.of_kind("learner")
    assert learners[0].create_time() <= learners[1].create_time()


def test_a_kind_that_does_not_come_is_named(run: RunProcesses) -> None:
    assert len(run.wait_for("learner", 2, 0.0)) == 2
    with pytest.raises(WaitTimeoutError, match="1 processes named ray::RewardWorker below"):
        run.wait_for("reward", 1, 0.2)


def test_the_whole_run_is_killed_and_nothing_else(run: RunProcesses, bystander: psutil.Process) -> None:
    assert run.kill_all() == 6
    assert run.look() == []
    assert is_alive(bystander) and len(bystander.children()) == 1


def test_orphans_of_a_driver_that_was_killed_are_known(run: RunProcesses) -> None:
    assert len(run.look()) == 6
    run.driver.kill()
    psutil.wait_procs([run.driver], timeout=30)
    left = run.left_over(0.2)
    assert sorted(name.split()[1] for name in left) == sorted(TITLES)
    assert run.kill_all() == 5
    assert run.left_over(0.2) == []


def test_what_an_orphan_starts_later_is_known() -> None:
    with driver("ray::RolloutActor", code=LATE) as started:
        run = RunProcesses(started.pid)
        assert len(run.look()) == 2
        run.driver.kill()
        started.wait(30)
        end = time.monotonic() + 10
        while len(found := run.look()) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(found) == 2 and run.driver not in found
        assert run.kill_all() == 2


def test_every_thread_is_pinned() -> None:
    code = "import threading, time\n" + SLEEP.replace(
        "print", "[threading.Thread(target=time.sleep, args=(300,), daemon=True).start() for _ in range(3)]; print"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        core = sorted(os.sched_getaffinity(process.pid))[-1]
        found = psutil.Process(process.pid)
        try:
            assert len(found.threads()) == 4
            pin([found], [core])
            assert [os.sched_getaffinity(t.id) for t in found.threads()] == [{core}] * 4
            assert pin([found], [core]) == 0
        finally:
            found.send_signal(signal.SIGKILL)
