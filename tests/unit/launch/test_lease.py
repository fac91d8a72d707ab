"""The lease of a run folder: real processes that hold it, die, freeze and come back."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from launch.lease import FOLDER, Lease, LeaseLostError, own_place, process_start
from launch.run_folder import RunFolder
from lwz_ray.errors import UserError

PATIENCE_S = 30.0
HOLDER = """
import sys, time
from pathlib import Path
from launch.lease import Lease

lease = Lease.take(Path(sys.argv[1]), 3.0)
print("taken", flush=True)
for line in sys.stdin:
    try:
        lease.check()
        print("mine", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


class Driver:
    """Another process that holds the folder."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        while line.startswith(str(folder)):  # it waits for an earlier one
            line = self.process.stdout.readline()
        assert line == "taken\n"

    def ask(self) -> str:
        """Return what `check` says there."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    other = Driver(tmp_path)
    yield other
    other.kill()


def numbers(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / FOLDER).glob("*.json"))


def wait_for(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            pytest.fail(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(0.05)


def test_a_second_driver_is_refused(driver: Driver, tmp_path: Path):
    said: list[str] = []
    with pytest.raises(UserError) as refused:
        Lease.take(tmp_path, 20.0, said.append)
    text = str(refused.value)
    assert text.startswith(f"{tmp_path} is in use by process {driver.process.pid} on ")
    assert text.endswith(
        "wait for it to end, or choose another run.name; a driver that shows no life for "
        "run.lease_timeout_s=20 seconds loses its run folder"
    )
    assert said == [line for line in said if "waiting up to 20 s for a sign of life of it" in line] and said
    assert driver.ask() == "mine"
    assert numbers(tmp_path) == ["000001.json"]


def test_a_killed_one_is_followed_at_once(driver: Driver, tmp_path: Path):
    driver.kill()
    said: list[str] = []
    lease = Lease.take(tmp_path, 3600.0, said.append)
    lease.check()
    assert said == []
    assert numbers(tmp_path) == ["000002.json"]
    lease.release()
    told = json.loads((tmp_path / FOLDER / "000002.json").read_text())
    assert (told["released"], told["pid"], told["place"]) == (True, os.getpid(), own_place())
    Lease.take(tmp_path, 3600.0, said.append).release()
    assert said == [] and numbers(tmp_path) == ["000003.json"]


def test_a_later_process_with_the_same_id_is_no_holder(driver: Driver, tmp_path: Path):
    driver.process.send_signal(signal.SIGSTOP)
    file = tmp_path / FOLDER / "000001.json"
    told = json.loads(file.read_text())
    assert told["started"] == process_start(driver.process.pid) > 0
    file.write_text(json.dumps({**told, "started": told["started"] - 1}))
    Lease.take(tmp_path, 3600.0).release()


def test_a_frozen_one_loses_the_folder_and_stops(driver: Driver, tmp_path: Path):
    driver.process.send_signal(signal.SIGSTOP)
    lease = Lease.take(tmp_path, 3.0)
    driver.process.send_signal(signal.SIGCONT)
    assert driver.ask() == (
        f"LeaseLostError {tmp_path} was taken over by process {os.getpid()} on {os.uname().nodename} since "
        f"{json.loads((tmp_path / FOLDER / '000002.json').read_text())['since']}: this driver "
        f"(process {driver.process.pid}) stops and writes nothing more"
    )
    lease.check()
    lease.release()


def test_one_on_another_machine_is_judged_by_its_beats(tmp_path: Path):
    """Its clock may be wrong by hours and its process id mean nothing here."""
    (tmp_path / FOLDER).mkdir()
    far = {
        "host": "far", "place": "far 1 pid:[1]", "pid": os.getpid(), "started": process_start(os.getpid()),
        "since": "1999-01-01T00:00:00+00:00", "token": "t", "beat": 7, "released": False,
    }  # fmt: skip
    file = tmp_path / FOLDER / "000004.json"
    file.write_text(json.dumps(far))

    def beat_on(_: str) -> None:
        file.write_text(json.dumps({**far, "beat": 8}))

    with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on far since 1999-01-01T00:00:00"):
        Lease.take(tmp_path, 60.0, beat_on)
    lease = Lease.take(tmp_path, 0.5)
    assert numbers(tmp_path) == ["000005.json"]
    lease.release()


def test_a_file_that_nobody_finished_is_waited_for_and_taken_over(tmp_path: Path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "000001.json").touch()
    said: list[str] = []
    Lease.take(tmp_path, 0.5, said.append).release()
    assert said == [] and numbers(tmp_path) == ["000002.json"]


def race(folder: str, start: Any, told: Connection) -> None:
    start.wait(PATIENCE_S)
    try:
        lease = Lease.take(Path(folder), 20.0, lambda _: None)
    except UserError:
        told.send("refused")
        return
    told.send("taken")
    told.recv()
    lease.release()


def test_of_several_that_take_over_at_once_one_wins(driver: Driver, tmp_path: Path):
    driver.kill()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launch.lease"])
    start, ends = context.Event(), [context.Pipe() for _ in range(6)]
    racers = [context.Process(target=race, args=(str(tmp_path), start, child)) for _, child in ends]
    for racer in racers:
        racer.start()
    start.set()
    told = []
    for parent, _ in ends:
        assert parent.poll(PATIENCE_S), "a taker gave no answer"
        told.append(parent.recv())
    assert sorted(told) == ["refused"] * 5 + ["taken"]
    ends[told.index("taken")][0].send("end")
    for racer in racers:
        racer.join(PATIENCE_S)
    assert [r.exitcode for r in racers] == [0] * 6


def test_the_run_folder_keeps_to_its_lease(make_config, tmp_path: Path):
    """A driver that finds its lease taken leaves every file as it is."""
    (tmp_path / "runs" / "trial").mkdir(parents=True)
    lease = Lease.take(tmp_path / "runs" / "trial", 3.0)
    heard: list[str] = []
    lease.on_lost = lambda: heard.append("lost")
    folder = RunFolder.open(make_config(run={"resume": "auto"}), environ={}, lease=lease)
    folder.append_metrics({"step": 1, "train/loss": 1.0})
    successor = json.loads((folder.path / FOLDER / "000001.json").read_text()) | {"host": "far"}
    (folder.path / FOLDER / "000002.json").write_text(json.dumps(successor))
    wait_for(lambda: heard == ["lost"], "the lease to notice")
    before = {p: p.read_bytes() for p in folder.path.iterdir() if p.is_file()}
    for write in (
        lambda: folder.append_metrics({"step": 2}),
        lambda: folder.mark_superseded(0),
        lambda: folder.next_attempt("a reason"),
    ):
        with pytest.raises(LeaseLostError, match=r"was taken over by process .* on far since "):
            write()
    folder.warn("test", "goes to the log alone")
    lease.release()
    assert {p: p.read_bytes() for p in folder.path.iterdir() if p.is_file()} == before
    assert not json.loads((folder.path / FOLDER / "000001.json").read_text())["released"]


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(UserError, match=r"cannot write there \(File exists\); choose another run.dir"):
        Lease.take(tmp_path, 3.0)
