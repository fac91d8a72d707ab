"""Requests to a running driver through its run folder: answers, refusals, and a run that is not there."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from launch import control
from launch.cli import main
from launch.control import Answer, ControlWatcher, ask
from launch.lease import LeaseLostError
from lwz_ray.errors import UserError, WaitTimeoutError

asked: list[Any] = []


async def replicas(value: Any) -> str:
    """Act as the run's scaling does: done, refused, broken or slow."""
    asked.append(value)
    if value == 99:
        raise UserError("no room for 99")
    if value == 13:
        raise RuntimeError("bad luck")
    if value == 60:
        await asyncio.sleep(60)
    return f"1 -> {value}"


@pytest.fixture
async def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """Run a watcher in a run folder, with short times."""
    monkeypatch.setattr(control, "POLL_S", 0.04)
    asked.clear()
    folder = tmp_path / "runs" / "trial"
    (folder / "control").mkdir(parents=True)
    (folder / "control" / "request-0-old.json").write_text('{"id": "0-old", "key": "rewards.replicas", "value": 7}')
    actions = {"rewards.replicas": replicas, "actors.replicas": replicas}
    watcher = ControlWatcher(folder, actions, timeout_s=0.5)
    await watcher.start()
    yield folder
    await watcher.stop()


async def asks(folder: Path, value: Any, key: str = "rewards.replicas") -> Answer:
    return await asyncio.to_thread(ask, folder, key, value, lambda text: None)


async def test_a_request_is_acted_on_once_and_answered(run_folder: Path) -> None:
    assert await asks(run_folder, 3) == Answer("done", "1 -> 3")
    assert asked == [3], "what an earlier attempt left is not acted on"
    assert [p.name for p in (run_folder / "control").iterdir()] == ["heartbeat.json"]


async def test_several_requests_are_answered_in_turn(run_folder: Path) -> None:
    answers = await asyncio.gather(*(asks(run_folder, n) for n in (2, 3, 4)))
    assert [a.message for a in answers] == ["1 -> 2", "1 -> 3", "1 -> 4"]
    assert sorted(asked) == [2, 3, 4]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rewards.replicas", 99, Answer("refused", "no room for 99")),
        ("rewards.replicas", 13, Answer("failed", "RuntimeError: bad luck")),
        ("rewards.replicas", 60, Answer("failed", "waited 0.5 s for rewards.replicas=60 and gave up")),
        (
            "seed",
            2,
            Answer("refused", "seed cannot be changed while the run goes on: rewards.replicas, actors.replicas can"),
        ),
    ],
)
async def test_what_cannot_be_done_is_answered_too(run_folder: Path, key: str, value: int, expected: Answer) -> None:
    assert await asks(run_folder, value, key) == expected
    assert await asks(run_folder, 2) == Answer("done", "1 -> 2"), "and the run goes on taking requests"


async def test_garbage_in_the_folder_does_not_stop_the_run(run_folder: Path) -> None:
    (run_folder / "control" / "request-1.json").write_text("{")
    (run_folder / "control" / "request-2.json").write_text("[1]")
    (run_folder / "control" / "request-3.json").write_bytes(b"\xff\xfe")
    assert await asks(run_folder, 2) == Answer("done", "1 -> 2")


async def test_a_run_that_ends_meanwhile_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "POLL_S", 0.04)
    begun = asyncio.Event()

    async def endless(value: Any) -> str:
        begun.set()
        await asyncio.sleep(60)
        return "never"

    watcher = ControlWatcher(tmp_path, {"rewards.replicas": endless}, timeout_s=100)
    await watcher.start()
    asking = asyncio.create_task(asks(tmp_path, 60))
    await asyncio.wait_for(begun.wait(), 10)
    await watcher.stop()
    assert await asking == Answer("failed", "the run ended before it was done")
    with pytest.raises(UserError, match=r"no run goes on in .*heartbeat\.json is not there"):
        await asks(tmp_path, 2)


def heartbeat(folder: Path, pid: int) -> None:
    (folder / "control").mkdir(exist_ok=True)
    life = {"beat": 4, "pid": pid, "host": socket.gethostname(), "time": "2026-01-01", "timeout_s": 1.0}
    (folder / "control" / "heartbeat.json").write_text(json.dumps(life))


def test_a_run_that_died_or_stands_still_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    heartbeat(tmp_path, ended.pid)
    with pytest.raises(UserError, match=f"no run goes on in .*: process {ended.pid} has ended"):
        ask(tmp_path, "rewards.replicas", 2)
    monkeypatch.setattr(control, "SIGN_OF_LIFE_S", 0.3)
    heartbeat(tmp_path, os.getpid())
    with pytest.raises(UserError, match=r"waited 0\.3 s for a sign of life of the run \(process"):
        ask(tmp_path, "rewards.replicas", 2)


async def test_a_run_that_stops_answering_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SIGN_OF_LIFE_S", 0.3)
    monkeypatch.setattr(control, "POLL_S", 0.04)

    async def beat_once() -> None:
        await asyncio.sleep(0.1)
        file = tmp_path / "control" / "heartbeat.json"
        file.write_text(file.read_text().replace('"beat": 4', '"beat": 5'))

    heartbeat(tmp_path, os.getpid())
    with pytest.raises(WaitTimeoutError, match="a sign of life of the run"):
        await asyncio.gather(beat_once(), asks(tmp_path, 2))
    assert not list((tmp_path / "control").glob("request-*"))


async def test_the_command_scales_a_run_and_says_what_was_done(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stage=scale", f"run.dir={run_folder.parent}", "run.name=trial"]
    assert await asyncio.to_thread(main, [*words, "rewards.replicas=3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 -> 3"
    assert await asyncio.to_thread(main, [*words, "rewards.replicas=99"]) == 2
    assert capsys.readouterr().err == "error: no room for 99\n"
    assert await asyncio.to_thread(main, [*words, "rewards.replicas=13"]) == 1
    assert capsys.readouterr().err == "error: RuntimeError: bad luck\n"
    asked.clear()
    assert await asyncio.to_thread(main, [*words, "rewards.replicas=4", "actors.replicas=5"]) == 0
    assert asked == [5, 4], "each key that was named, and no other"


def test_the_command_names_a_missing_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.chdir(tmp_path):
        assert main(["stage=scale", f"run.dir={tmp_path}", "run.name=nothing", "rewards.replicas=2"]) == 2
    assert f"error: {tmp_path}/nothing: no such run folder" in capsys.readouterr().err


async def test_a_driver_whose_folder_was_taken_touches_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests are for the driver that took it."""
    monkeypatch.setattr(control, "POLL_S", 0.02)
    lost, noticed = threading.Event(), threading.Event()

    def check() -> None:
        if lost.is_set():
            noticed.set()
            raise LeaseLostError(f"{tmp_path} was taken over")

    asked.clear()
    watcher = ControlWatcher(tmp_path, {"rewards.replicas": replicas}, timeout_s=5, check=check)
    await watcher.start()
    lost.set()
    assert await asyncio.to_thread(noticed.wait, 10), "it looks before it writes"
    heartbeat(tmp_path, 4242)
    (tmp_path / "control" / "request-1.json").write_text('{"id": "1", "key": "rewards.replicas", "value": 7}')
    await asyncio.sleep(0.2)
    await watcher.stop()
    assert json.loads((tmp_path / "control" / "heartbeat.json").read_text())["pid"] == 4242
    assert (asked, [p.name for p in (tmp_path / "control").glob("*-1.json")]) == ([], ["request-1.json"])


def test_a_folder_without_a_heartbeat_is_asked_for_through_the_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks of a run leave files in folders of its name on nodes that its driver does not see."""
    (tmp_path / "far").mkdir()
    words = ["stage=scale", f"run.dir={tmp_path}", "run.name=far", "rewards.replicas=2"]
    assert main([*words, "cluster.address=http://head:8265"]) == 2
    assert "error: cluster.address='http://head:8265' is a dashboard's address" in capsys.readouterr().err
