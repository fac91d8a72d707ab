"""One driver for one run folder: a lease that is taken, kept alive beat by beat, and lost to whoever takes it over.

<run folder>/lease/
    000001.json   who holds the folder, written by that driver alone; `beat` counts its seconds

The newest file is the lease. Taking the folder over means to create the next number, which only one of several can do
(O_EXCL, also on shared file systems). No driver ever writes another one's file: one that was frozen while its lease
was taken finds the newer file and cannot undo it. Beats are compared, never clocks.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.manifest import now
from lwz_ray.errors import InfrastructureError, UserError

log = logging.getLogger(__name__)

FOLDER = "lease"
BEAT_S = 1.0
POLL_S = 0.25


class LeaseLostError(InfrastructureError):
    """Another driver has taken the run folder: this one must not write there any more."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lease says of the driver that holds it."""

    number: int
    host: str = "unknown"
    place: str = ""
    """Machine since its start, and process namespace: where it is the same, process ids can be compared."""
    pid: int = 0
    started: int = 0
    """When the process began, in the kernel's ticks: a later process may have got the same id."""
    since: str = "unknown"
    beat: int = -1
    token: str = ""
    released: bool = False

    @property
    def words(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def has_ended(self) -> bool:
        """Say whether it is known at once that the holder writes no more."""
        return self.released or (self.place == own_place() and process_start(self.pid) != self.started)


class Lease:
    """The right to write in a run folder. `take` waits for it or is refused; `check` before a write keeps to it."""

    def __init__(self, folder: Path, number: int, timeout_s: float) -> None:
        """Made by `take`, which created the file of this number."""
        self._run_folder, self._folder, self._timeout_s = folder, folder / FOLDER, timeout_s
        self._number, self._beat = number, 0
        self._life: dict[str, Any] = {
            "host": socket.gethostname(), "place": own_place(), "pid": os.getpid(), "token": uuid.uuid4().hex,
            "started": process_start(os.getpid()), "since": now(),
        }  # fmt: skip
        self._lock = threading.Lock()
        self._seen = time.monotonic()
        self._taken_by: Holder | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.on_lost: Callable[[], object] = lambda: None
        """Called once, from the lease's own thread, when another driver is found to have taken it."""

    @classmethod
    def take(cls, run_folder: Path, timeout_s: float, say: Callable[[str], None] = print) -> "Lease":
        """Return the lease of an existing folder.

        A holder whose process is gone is replaced at once where that can be seen from here, elsewhere after `timeout_s`
        without a beat. Raises UserError where the holder shows life.
        """
        folder = run_folder / FOLDER
        try:
            folder.mkdir(exist_ok=True)
            while True:
                number = _next_number(run_folder, timeout_s, say)
                if _create(folder, number):
                    return cls(run_folder, number, timeout_s)._begin()
                # Another driver was faster: look at that one.
        except OSError as error:
            raise UserError(f"{run_folder}: cannot write there ({error.strerror}); choose another run.dir") from error

    def check(self) -> None:
        """Raise LeaseLostError where another driver has the folder; to be called before every write.

        Looks for itself where the thread has not for long: this process may have been frozen until a moment ago.
        """
        if self._taken_by is None and time.monotonic() - self._seen > self._timeout_s / 2:
            self._look()
        if self._taken_by is not None:
            raise LeaseLostError(
                f"{self._run_folder} was taken over by {self._taken_by.words}: this driver "
                f"(process {os.getpid()}) stops and writes nothing more"
            )

    @property
    def lost(self) -> bool:
        return self._taken_by is not None

    def release(self) -> None:
        """Give the folder back; the next driver need not wait. Does nothing where it was lost."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2 * BEAT_S)
        if self._taken_by is None:
            try:
                self._write(released=True)
            except OSError as error:  # the next driver then waits for a sign of life
                log.warning("lease: %s: %s", self._folder, error)

    def _begin(self) -> "Lease":
        self._write()
        for old in (*self._folder.glob("*.json"), *self._folder.glob(".*.tmp")):
            if _number(old) < self._number:
                old.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def _keep(self) -> None:
        away = False
        while not self._ended.wait(BEAT_S):
            try:
                self._look()
                away = False
            except OSError as error:  # a shared folder may be away for a while; `check` looks again before a write
                if not away:
                    log.warning("lease: %s: %s", self._folder, error)
                away = True
            if self._taken_by is not None:
                self.on_lost()
                return

    def _look(self) -> None:
        """Beat, then look for a newer lease; writing first makes a shared file system's client look anew."""
        with self._lock:
            self._write()
            newest = _newest(self._folder)
            if newest is not None and newest.number > self._number:
                self._taken_by = newest
            self._seen = time.monotonic()

    def _write(self, released: bool = False) -> None:
        self._beat += 1
        path = self._folder / f"{self._number:06d}.json"
        aside = path.with_name(f".{path.name}.{self._life['token']}.tmp")
        aside.write_text(json.dumps({**self._life, "beat": self._beat, "released": released}), encoding="utf-8")
        os.replace(aside, path)


def _next_number(run_folder: Path, timeout_s: float, say: Callable[[str], None]) -> int:
    """Return the number that follows the newest lease, once its holder has ended or shown no life for `timeout_s`."""
    known, end = Holder(0), 0.0
    while True:
        holder = _newest(run_folder / FOLDER)
        if holder is None or holder.has_ended():
            return 1 if holder is None else holder.number + 1
        if holder.number != known.number:
            end = time.monotonic() + timeout_s
        elif holder.beat > known.beat >= 0:
            raise UserError(
                f"{run_folder} is in use by {holder.words}: wait for it to end, or choose another run.name; a driver "
                f"that shows no life for run.lease_timeout_s={timeout_s:g} seconds loses its run folder"
            )
        if holder.beat >= 0 and (holder.number, holder.beat) != (known.number, known.beat):
            say(f"{run_folder} is held by {holder.words}: waiting up to {timeout_s:g} s for a sign of life of it")
        if time.monotonic() > end:
            return holder.number + 1
        known = holder
        time.sleep(POLL_S)


def own_place() -> str:
    """Return what must agree for two processes to know each other's ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def process_start(pid: int) -> int:
    """Return when a process of this machine began, in ticks since the machine did; -1 where it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return -1
    # The name in the second field may hold spaces and brackets; what follows it does not.
    fields = stat.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])


def _number(path: Path) -> int:
    digits = path.name.lstrip(".").partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _newest(folder: Path) -> Holder | None:
    """Return the holder of the newest lease; with `beat=-1` where its file is still being written."""
    path = max(folder.glob("*.json"), key=_number, default=None)
    if path is None:
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Holder(_number(path), **told)
    except (FileNotFoundError, ValueError, TypeError):
        return Holder(_number(path))


def _create(folder: Path, number: int) -> bool:
    """Create the file of a lease; False where another driver has done so."""
    try:
        os.close(os.open(folder / f"{number:06d}.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True
