"""The whole suite in two runs of pytest: `python -m tests.suite [words for pytest]`, as `make test-local` starts it.

First what needs no cluster of its own, on several processes, a file in one of them; then contracts and integration,
which fill the machine by themselves, one test after the other. The second run starts whatever became of the first, so
that one go shows everything. The words go to both: a run that they leave without tests says nothing.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

ALONE = ("contract", "integration")
TOGETHER = ("arch", "property", "unit")
MAX_PROCESSES = 4
"""Each loads torch and transformers: about 1 GiB."""
NO_TESTS = 5
"""pytest's exit status where it ran no test."""
INTERRUPTED = 130
END_TIMEOUT_S = 60.0
WHAT_BECAME = {0: "passed", 1: "failed", 2: "interrupted, or not collected", 4: "wrong words", NO_TESTS: "no tests"}


@dataclass(frozen=True)
class Half:
    """One run of pytest over some of the folders below tests/."""

    folders: tuple[str, ...]
    others: tuple[str, ...]
    options: tuple[str, ...] = ()

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command line. `--ignore` spares collecting the others, `--deselect` holds where words name one."""
        left_out = [f"{way}=tests/{name}" for name in self.others for way in ("--ignore", "--deselect")]
        return [sys.executable, "-m", "pytest", "--durations=25", *left_out, *self.options, *words]


HALVES = (Half(TOGETHER, ALONE, ("--numprocesses=auto", "--dist=loadfile")), Half(ALONE, TOGETHER))


def environment() -> dict[str, str]:
    """Return this process's environment with what `--numprocesses=auto` means here."""
    processes = min(MAX_PROCESSES, len(os.sched_getaffinity(0)))
    return {"PYTEST_XDIST_AUTO_NUM_WORKERS": str(processes)} | os.environ


def status_of(statuses: Sequence[int]) -> int:
    """Return the status of both: the first that is bad; where neither ran a test, pytest's own for that.

    >>> status_of([0, 5]), status_of([5, 1]), status_of([1, 0]), status_of([5, 5])
    (0, 1, 1, 5)
    """
    bad = [status for status in statuses if status not in (0, NO_TESTS)]
    return bad[0] if bad else min(statuses)


def run(command: Sequence[str]) -> int:
    """Run one half to its end. Ctrl-C reaches it too, and it ends by itself; SIGTERM is passed on."""
    child = subprocess.Popen(command, env=environment())
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.wait(END_TIMEOUT_S)
        raise
    finally:
        if child.poll() is None:
            child.terminate()


def main(words: Sequence[str]) -> int:
    """Run both halves and print a line with both results; return the status."""
    told, statuses = list[str](), list[int]()
    for half in HALVES:
        began = time.monotonic()
        try:
            statuses.append(run(half.command(words)))
        except KeyboardInterrupt:
            return INTERRUPTED
        became = WHAT_BECAME.get(statuses[-1], f"status {statuses[-1]}")
        told.append(f"{', '.join(half.folders)}: {became} in {time.monotonic() - began:.0f} s")
    print(f"suite: {'; '.join(told)}", flush=True)
    return status_of(statuses)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
