"""A real run of the front door whose processes are killed one after the other, at moments drawn by seed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from benchmarks.chaos_audit import SOURCE_OF
from benchmarks.run_processes import KINDS, RunProcesses, title_of
from launch.files import iter_json_lines
from lwz_ray.errors import InfrastructureError, WaitTimeoutError

Target = Literal["rollout", "engine", "reward", "learner", "job"]
TARGETS: tuple[Target, ...] = (*KINDS, "job")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1",
}  # fmt: skip
ELSEWHERE = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "WANDB_API_KEY")
"""Variables that would send the run to another cluster or account."""
ORPHANS_PARENT = 1
POLL_S = 0.1
START_TIMEOUT_S = 240.0
RECOVERY_TIMEOUT_S = 240.0
NOTICE_TIMEOUT_S = 90.0
SHORT_NOTICE_S = 20.0
"""Where another kill may have led to the same loss, which is told of once."""
END_TIMEOUT_S = 600.0
TAIL_LINES = 30


class SoakError(InfrastructureError):
    """The run did not survive, or did not come back in time."""


@dataclass(slots=True)
class Kill:
    """One kill and what followed; seconds are from the kill."""

    target: Target
    pid: int
    title: str
    at_s: float
    """Since the soak began."""
    step: int
    """The last step that was logged before."""
    attempt: int
    waited: bool
    """False: the next kill came without waiting for what this one led to."""
    noticed_s: float | None = None
    """Until the run said so in warnings.jsonl."""
    step_s: float | None = None
    """Until the next step was logged; learner and job: by a later attempt."""


def kill_plan(num: int, seed: int) -> list[Target]:
    """Return what is killed: every target once in five, in an order drawn by seed, the job never first.

    >>> sorted(kill_plan(5, 1)) == sorted(TARGETS)
    True
    """
    rng = random.Random(seed)
    plan: list[Target] = []
    while len(plan) < num:
        five = list(TARGETS)
        rng.shuffle(five)
        if not plan and five[0] == "job":
            five.append(five.pop(0))
        plan += five
    return plan[:num]


def hit_alone(target: Target, before: Sequence[Kill]) -> bool:
    """Say whether a kill leads to a loss of its own.

    Not where one since the last that was waited for led to the same kind of loss: both may have hit one replica or
    group, and that one loss may have been told already.
    """
    for kill in reversed(before):
        if kill.waited:
            break
        if SOURCE_OF.get(kill.target) == SOURCE_OF.get(target):
            return False
    return True


class Soak:
    """One run folder, its command, and the kills so far. Only processes below the command are ever killed."""

    def __init__(self, words: Sequence[str], folder: Path, log: Path, seed: int, say: Callable[[str], None]) -> None:
        """words: of the front door, with run.resume=auto; folder: the run's; log: what the command prints, all starts.

        The random numbers of `kill_plan` and of the moments are apart.
        """
        self.folder, self.kills, self.starts = folder, list[Kill](), 0
        self._words, self._log, self._say = list(words), log, say
        self._rng = random.Random(f"{seed} moments")
        self._began = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._run: RunProcesses | None = None
        self.left_over: list[str] = []
        """Processes that outlived the run's end."""

    # -- what the run says of itself

    def lines(self) -> list[dict[str, Any]]:
        return list(iter_json_lines(self.folder / "metrics.jsonl"))

    def warned(self, source: str | None) -> int:
        """Return how many losses of a source the run told of so far."""
        return sum(row["source"] == source for row in iter_json_lines(self.folder / "warnings.jsonl"))

    # -- the run

    def start(self) -> None:
        """Start the command, the same every time, and wait until it has logged a step of an attempt of its own."""
        before = max((row["attempt"] for row in self.lines()), default=0)
        env = {k: v for k, v in os.environ.items() if k not in ELSEWHERE} | ENVIRONMENT
        self.starts += 1
        with self._log.open("ab") as log:
            log.write(f"-- start {self.starts}\n".encode())
            log.flush()
            self._process = self._popen(log, env)
        self._run = RunProcesses(self._process.pid)
        self._until(lambda: any(r["attempt"] > before for r in self.lines()), START_TIMEOUT_S, "its first step")

    def _popen(self, log: IO[bytes], env: dict[str, str]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "lwz_ray.main", *self._words]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)

    def strike(self, target: Target, overlap: float) -> bool:
        """Kill one process of the target at a random moment; return False where the run came to its end before.

        overlap: how likely the next kill does not wait for what this one leads to. Raises SoakError where the run ends
        otherwise, says nothing of its loss, or does not go on.
        """
        if not self._let_it_run() or (victim := self._pick(target)) is None:
            return False
        rows, source = self.lines(), SOURCE_OF.get(target)
        warned = self.warned(source)
        step, attempt = (rows[-1]["step"], rows[-1]["attempt"]) if rows else (0, 0)
        waited = target == "job" or self._rng.random() >= overlap
        kill = Kill(target, victim.pid, title_of(victim), time.monotonic() - self._began, step, attempt, waited)
        self._say(f"kill {len(self.kills) + 1}: {target}, process {kill.pid} ({kill.title[:60]}), after step {step}")
        struck = time.monotonic()
        if target == "job":
            self._kill_job()
            self.start()
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        alone = hit_alone(target, self.kills)
        self.kills.append(kill)
        if waited:
            limit = NOTICE_TIMEOUT_S if alone else SHORT_NOTICE_S
            if source is None or self._until(
                lambda: self.warned(source) > warned, limit, f"a warning of {source}", alone
            ):
                kill.noticed_s = None if source is None else time.monotonic() - struck
            self._until(lambda: self._goes_on(kill, len(rows)), RECOVERY_TIMEOUT_S, "the next step")
            kill.step_s = time.monotonic() - struck
        return not self._ended_well()

    @property
    def noticed(self) -> dict[str, int]:
        """Return how many losses the run told of, by source."""
        return dict(Counter(SOURCE_OF[k.target] for k in self.kills if k.noticed_s is not None))

    def finish(self) -> None:
        """Wait for the run's own end, which must be a good one; nothing of it may stay."""
        assert self._process is not None and self._run is not None
        end = time.monotonic() + END_TIMEOUT_S
        while self._process.poll() is None:
            if time.monotonic() > end:
                raise SoakError(f"still ran {END_TIMEOUT_S:g} s after the last kill\n{self._tail()}")
            self._run.look()
            time.sleep(POLL_S)
        if self._process.returncode != 0:
            raise SoakError(f"ended with {self._process.returncode}\n{self._tail()}")
        self.left_over = self._run.left_over(20.0)

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        if self._process is not None and self._run is not None:
            self._run.kill_all()
            self._process.wait(30)

    # -- inside

    def _let_it_run(self) -> bool:
        """Let some steps pass and a part of one; False where the run has ended well."""
        steps, rest = self._rng.randrange(3), self._rng.uniform(0.0, 2.0)
        seen = len(self.lines())
        self._until(lambda: len(self.lines()) >= seen + steps, RECOVERY_TIMEOUT_S, f"{steps} steps")
        time.sleep(rest)
        return not self._ended_well()

    def _pick(self, target: Target) -> psutil.Process | None:
        """Return a process of the target, drawn; waits where there is none for the moment. None: the run has ended."""
        assert self._run is not None
        run, found = self._run, list[psutil.Process]()
        if target == "job":
            return run.driver

        def there() -> bool:
            # An engine that outlives its Ray actor ends by itself: nobody would miss it.
            found[:] = [p for p in run.of_kind(target) if target != "engine" or p.ppid() != ORPHANS_PARENT]
            return bool(found)

        self._until(there, RECOVERY_TIMEOUT_S, f"a process of kind {target}")
        return self._rng.choice(found) if found else None

    def _kill_job(self) -> None:
        assert self._run is not None and self._process is not None
        killed = self._run.kill_all()
        self._process.wait(30)
        self._say(f"  {killed} processes of the job killed; the same command again")

    def _goes_on(self, kill: Kill, num_rows: int) -> bool:
        rows = self.lines()
        if kill.target in ("learner", "job"):
            return any(row["attempt"] > kill.attempt for row in rows)
        return len(rows) > num_rows

    def _ended_well(self) -> bool:
        assert self._process is not None
        return self._process.poll() == 0

    def _until(self, holds: Callable[[], bool], timeout_s: float, what: str, must: bool = True) -> bool:
        """Wait for something of the run; return whether it came: not where the run came to a good end before.

        must: raise SoakError when the time is over. An end that is not good raises it in any case.
        """
        assert self._process is not None and self._run is not None
        end = time.monotonic() + timeout_s
        while not holds():
            status = self._process.poll()
            if status is not None and status != 0:
                raise SoakError(f"ended with {status}, waiting for {what}\n{self._tail()}")
            if status == 0 or (time.monotonic() > end and not must):
                return holds()
            if time.monotonic() > end:
                raise SoakError(f"{WaitTimeoutError(what, timeout_s)}\n{self._tail()}")
            self._run.look()
            time.sleep(POLL_S)
        return True

    def _tail(self) -> str:
        last = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"the end of {self._log}:", *last])
