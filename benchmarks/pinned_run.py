"""A run of the front door whose kinds of processes are held on cores of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.our_step import ENVIRONMENT, LOG_LINES
from benchmarks.run_processes import Kind, RunProcesses, pin
from launch.files import iter_json_lines
from lwz_ray.errors import InfrastructureError, WaitTimeoutError

PIN_EVERY_S = 0.5
PIN_SELDOM_S = 5.0
"""Once training goes on: threads that come later inherit the cores of the thread that starts them."""


def run_pinned(
    words: Sequence[str], folder: Path, log: Path, cores: Mapping[str, Sequence[int]], timeout_s: float
) -> list[dict[str, Any]]:
    """Run the front door and return the lines of its metrics.jsonl; nothing of the run is left.

    folder: the run's; cores: by kind of process, see `Kind`. Raises InfrastructureError where the run fails or a kind
    was never seen, WaitTimeoutError where it takes too long.
    """
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "lwz_ray.main", *words],
            stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}, start_new_session=True,
        )  # fmt: skip
    run, end = RunProcesses(process.pid), time.monotonic() + timeout_s
    seen: set[str] = set()
    try:
        while process.poll() is None:
            for kind, chosen in cores.items():
                found = run.of_kind(cast(Kind, kind))
                pin(found, chosen)
                seen |= {kind} if found else set()
            if time.monotonic() > end:
                raise WaitTimeoutError(f"the run in {folder} (its output: {log})", timeout_s)
            training = (folder / "metrics.jsonl").exists()
            try:
                process.wait(PIN_SELDOM_S if training else PIN_EVERY_S)
            except subprocess.TimeoutExpired:
                continue
    finally:
        run.kill_all()
        process.wait(30)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
        raise InfrastructureError(f"the run ended with {process.returncode}; the end of {log}:\n{tail}")
    if missing := sorted(set(cores) - seen):
        raise InfrastructureError(f"no process of the kinds {missing} was seen below the run: nothing was pinned")
    return list(iter_json_lines(folder / "metrics.jsonl"))
