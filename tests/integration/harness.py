"""Runs of the front door in a process of its own, always with an end, and what their folders hold."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.run_processes import TITLES, title_of

REPO_ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.05
TAIL_CHARACTERS = 4000
ELSEWHERE = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "WANDB_API_KEY")
"""Variables that would send a run to another cluster or account than the test's own."""


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a child: this one's, away from other clusters and accounts, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if k not in ELSEWHERE}
    return kept | {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"} | extra


def run_words(models: Path, run_dir: Path, name: str, *more: str) -> list[str]:
    """Return a command line for the smoke preset's system with short texts and few held-out prompts."""
    return [
        "run=smoke_cpu",
        f"run.dir={run_dir}",
        f"run.name={name}",
        f"model.path={models}/tiny-random",
        f"rewards.writing.path={models}/tiny-classifier",
        "sampling.max_tokens=16",
        "eval.num_prompts=4",
        "tracking.wandb=false",
        *more,
    ]


def on_device(device: str, replicas: int = 1) -> list[str]:
    """Return the words that give the engines the GPU where there is one: vLLM's GPU build has no CPU mode."""
    return [f"actors.num_gpus={1 / replicas:g}"] if device == "cuda" else []


@dataclass(frozen=True)
class Finished:
    """What became of a child; `output` is its stdout and stderr together."""

    returncode: int
    output: str

    def lines(self, start: str) -> list[str]:
        """Return the lines of the output that begin with `start`."""
        return [line for line in self.output.splitlines() if line.startswith(start)]


class Child:
    """A command in a process group of its own, whose output goes to a file."""

    def __init__(self, command: Sequence[str], log: Path, cwd: Path, env: Mapping[str, str]) -> None:
        self.command = [str(word) for word in command]
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                self.command, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, env=dict(env), start_new_session=True
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, holds: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for something that the child does; fail where it ends or takes too long before."""
        end = time.monotonic() + timeout_s
        while not holds():
            if self.process.poll() is not None:
                self._fail(f"ended with {self.process.returncode} before {what}")
            if time.monotonic() > end:
                self._fail(f"waited {timeout_s:g} s for {what}")
            time.sleep(POLL_S)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the child alone, as a user or a scheduler does."""
        self.process.send_signal(number)

    def finish(self, timeout_s: float) -> Finished:
        """Wait for the end; past the time, kill the group and fail with the last of the output."""
        try:
            returncode = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._fail(f"still ran after {timeout_s:g} s")
        return Finished(returncode, self.output)

    def kill(self) -> None:
        """Kill the whole group; does nothing where it has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    def _fail(self, why: str) -> None:
        self.kill()
        pytest.fail(f"{' '.join(self.command)}\n{why}; the last it said:\n{self.output[-TAIL_CHARACTERS:]}")


def start(words: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> Child:
    """Start the front door in the repository's folder, as a user does; `environ` adds to its environment."""
    env = environment(**dict(environ or {}))
    return Child([sys.executable, "-m", "lwz_ray.main", *words], log, REPO_ROOT, env)


def run(
    words: Sequence[str], log: Path, timeout_s: float = 200.0, environ: Mapping[str, str] | None = None
) -> Finished:
    """Run the front door to its end."""
    return start(words, log, environ).finish(timeout_s)


def succeed(words: Sequence[str], log: Path, timeout_s: float = 200.0) -> Finished:
    """Run the front door to its end, which must be a good one."""
    done = run(words, log, timeout_s)
    assert done.returncode == 0, done.output[-TAIL_CHARACTERS:]
    return done


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a .jsonl file, none where it does not exist yet; a last line being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def complete_checkpoints(run_folder: Path) -> list[int]:
    """Return the steps whose checkpoint has its marker, in order."""
    return sorted(int(p.parent.name.removeprefix("step_")) for p in run_folder.glob("checkpoints/step_*/COMPLETE"))


def steps_of(folder: Path, attempt: int) -> list[int]:
    return [r["step"] for r in read_lines(folder / "metrics.jsonl") if r["attempt"] == attempt]


def has_more_than_a_checkpoint(folder: Path) -> bool:
    """Tell whether the first attempt has logged a step beyond a complete checkpoint."""
    saved = complete_checkpoints(folder)
    return bool(saved) and max(steps_of(folder, 1)) > saved[-1]


def learners_of(driver: Child) -> list[psutil.Process]:
    """Return the processes of the learner ranks of a run with a local cluster, by the name that Ray gives them."""
    below = psutil.Process(driver.process.pid).children(recursive=True)
    return [p for p in below if title_of(p).startswith(TITLES["learner"])]


def assert_balanced(groups: Mapping[str, Any]) -> None:
    """Every group that was admitted is trained, dropped for a reason, or in flight."""
    assert groups["admitted"] == groups["trained"] + sum(groups["dropped"].values()) + groups["in_flight"], groups


def staged_leftovers() -> set[str]:
    """Return the folders of staged weights on this host whose writer has ended."""
    folders = [p for parent in ("/dev/shm", "/tmp") for p in Path(parent).glob("lwz_ray-weights-*")]
    return {str(p) for p in folders if not psutil.pid_exists(int(p.name.split("-")[2]))}
