"""The processes of one run, found below its driver: by kind, to be killed, frozen or pinned, and nothing else."""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Literal, get_args

import psutil

from lwz_ray.errors import WaitTimeoutError

Kind = Literal["rollout", "engine", "reward", "learner"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES: dict[Kind, str] = {
    "rollout": "ray::RolloutActor",
    "engine": "VLLM::EngineCore",
    "reward": "ray::RewardWorker",
    "learner": "ray::LearnerActor",
}
"""How Ray and vLLM name their processes; a Ray actor's title goes on with the call that it works on."""
POLL_S = 0.1
END_TIMEOUT_S = 60.0


class RunProcesses:
    """Remembers every process that was seen below a run's driver, so that orphans are known too."""

    def __init__(self, driver_pid: int) -> None:
        self.driver = psutil.Process(driver_pid)
        self._seen: dict[tuple[int, float], psutil.Process] = {}

    def look(self) -> list[psutil.Process]:
        """Return the living processes of the run, its driver first; those that were seen earlier included."""
        # What is below an orphan is no longer below the driver, which may have ended itself.
        for parent in (self.driver, *filter(is_alive, list(self._seen.values()))):
            with contextlib.suppress(psutil.NoSuchProcess):
                below = parent.children(recursive=True)
                self._seen.update({(p.pid, p.create_time()): p for p in below if is_alive(p)})
        return [p for p in (self.driver, *self._seen.values()) if is_alive(p)]

    def of_kind(self, kind: Kind) -> list[psutil.Process]:
        """Return the run's living processes of a kind, oldest first."""
        found = [p for p in self.look() if title_of(p).startswith(TITLES[kind])]
        return sorted(found, key=lambda p: (p.create_time(), p.pid))

    def wait_for(self, kind: Kind, number: int, timeout_s: float) -> list[psutil.Process]:
        """Return the processes of a kind once there are `number` or more; raises WaitTimeoutError."""
        end = time.monotonic() + timeout_s
        while len(found := self.of_kind(kind)) < number:
            if time.monotonic() > end:
                raise WaitTimeoutError(f"{number} processes named {TITLES[kind]} below {self.driver.pid}", timeout_s)
            time.sleep(POLL_S)
        return found

    def kill_all(self) -> int:
        """SIGKILL the driver and everything below it, as a lost machine does; return how many were killed.

        Raises WaitTimeoutError where one is still there after END_TIMEOUT_S.
        """
        killed: set[int] = set()
        end = time.monotonic() + END_TIMEOUT_S
        while living := self.look():
            for process in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed.add(process.pid)
            if time.monotonic() > end:
                raise WaitTimeoutError(f"the killed processes {[p.pid for p in living]} to end", END_TIMEOUT_S)
            time.sleep(POLL_S)
        return len(killed)

    def left_over(self, timeout_s: float) -> list[str]:
        """Return the titles of processes that outlive the driver by more than timeout_s; Ray's own agents aside."""
        end = time.monotonic() + timeout_s
        while True:
            left = [p for p in self.look() if p.pid != self.driver.pid and not is_agent(p)]
            if not left or time.monotonic() > end:
                return [f"{p.pid} {title_of(p)}" for p in left]
            time.sleep(POLL_S)


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process runs: neither ended, nor only waiting to be collected, nor replaced under its number."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_agent(process: psutil.Process) -> bool:
    """Tell Ray's own agents, which look for their parent only now and then, from what this project starts."""
    return "Agent" in title_of(process)


def title_of(process: psutil.Process) -> str:
    """Return a process's command line, or the title that it gave itself; empty where it has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:
        return ""


def pin(processes: Sequence[psutil.Process], cores: Sequence[int]) -> int:
    """Let every thread of the processes run on these cores alone; return how many threads were moved.

    A process's own affinity is its first thread's only: threads that run already keep theirs.
    """
    moved = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for thread in process.threads():
                with contextlib.suppress(ProcessLookupError):
                    if os.sched_getaffinity(thread.id) != set(cores):
                        os.sched_setaffinity(thread.id, cores)
                        moved += 1
    return moved
