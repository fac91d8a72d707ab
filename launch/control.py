"""Requests to a run that goes on, through files in its run folder: no port, and any machine that sees the folder.

<run folder>/control/
    heartbeat.json     written every second by the run; `beat` counts, so that clocks of two machines do not matter
    request-<id>.json  what is asked, written by `ask` and taken away by the run
    answer-<id>.json   what became of it, written by the run and taken away by `ask`
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch.files import write_json
from launch.lease import LeaseLostError
from launch.manifest import now
from lwz_ray.errors import UserError, WaitTimeoutError

log = logging.getLogger(__name__)

FOLDER = "control"
POLL_S = 1.0
SIGN_OF_LIFE_S = 20.0
"""A run whose heartbeat stands still for this long is taken for dead; its event loop may be busy for some seconds."""

Action = Callable[[Any], Awaitable[str]]
"""Does what a request asks and says what was done; raises UserError where it refuses."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    status: Literal["done", "refused", "failed"]
    message: str


class ControlWatcher:
    """The run's side: shows that it is alive and acts on requests, one after the other."""

    def __init__(
        self,
        run_folder: Path,
        actions: Mapping[str, Action],
        timeout_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """actions: by the config key that they change. timeout_s: of one action; longer ones are given up.

        check: raises where this process may not write in the folder any more.
        """
        self._check = check
        self._folder = run_folder / FOLDER
        self._actions = dict(actions)
        self._timeout_s = timeout_s
        self._beat = 0
        self._task: asyncio.Task[None] | None = None
        self._acting: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Write the first heartbeat and begin; requests that an earlier attempt left are removed."""
        await asyncio.to_thread(self._prepare)
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop acting and take the heartbeat away; whoever still waits is told that the run has ended."""
        for task in (self._task, self._acting):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        self._task = self._acting = None
        await asyncio.to_thread(self._leave)

    async def act(self, key: str, value: Any) -> Answer:
        """Do what is asked, when earlier requests are done, and return what became of it."""
        if key not in self._actions:
            return Answer("refused", f"{key} cannot be changed while the run goes on: {', '.join(self._actions)} can")
        async with self._turn:
            try:
                message = await asyncio.wait_for(self._actions[key](value), self._timeout_s)
            except UserError as error:
                return Answer("refused", str(error))
            except TimeoutError:
                return Answer("failed", str(WaitTimeoutError(f"{key}={value}", self._timeout_s)))
            except Exception as error:  # the run must outlive whatever a request meets; the asker is told
                log.exception("control: %s=%s", key, value)
                return Answer("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
        return Answer("done", message)

    async def _watch(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._write_heartbeat)
                if self._acting is None or self._acting.done():
                    request = await asyncio.to_thread(self._next_request)
                    if request is not None:
                        self._acting = asyncio.create_task(self._act(request))
            except OSError as error:  # a shared folder may be away for a while; the run goes on without it
                log.warning("control: %s: %s", self._folder, error)
            except LeaseLostError as error:  # the requests are another driver's; this one is about to stop
                log.warning("control: %s", error)
                return
            await asyncio.sleep(POLL_S)

    async def _act(self, request: dict[str, Any]) -> None:
        answer = Answer("failed", "the run ended before it was done")
        try:
            answer = await self.act(request["key"], request["value"])
        finally:
            log.info("control: %s=%s: %s: %s", request["key"], request["value"], answer.status, answer.message)
            try:
                self._write_answer(request["id"], answer)
            except (OSError, LeaseLostError) as error:
                log.warning("control: cannot answer in %s: %s", self._folder, error)

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in [*self._folder.glob("request-*.json"), *self._folder.glob("answer-*.json")]:
            file.unlink(missing_ok=True)
        self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        self._check()
        self._beat += 1
        life = {"beat": self._beat, "pid": os.getpid(), "host": socket.gethostname(), "time": now()}
        write_json(heartbeat_path(self._folder.parent), {**life, "timeout_s": self._timeout_s})

    def _next_request(self) -> dict[str, Any] | None:
        """Take the oldest request out of the folder."""
        for file in sorted(self._folder.glob("request-*.json")):
            try:
                request = json.loads(file.read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError) as error:  # taken back meanwhile, or written by hand
                log.warning("control: %s left alone: %s", file.name, error)
                file.unlink(missing_ok=True)
                continue
            file.unlink(missing_ok=True)
            if isinstance(request, dict) and {"id", "key", "value"} <= set(request):
                return request
            log.warning("control: %s names no id, key and value", file.name)
        return None

    def _write_answer(self, request_id: str, answer: Answer) -> None:
        self._check()
        write_json(self._folder / f"answer-{request_id}.json", {"status": answer.status, "message": answer.message})

    def _leave(self) -> None:
        """Answer first: whoever waits takes a missing heartbeat for the end."""
        ended = Answer("refused", "the run ended before it was done")
        with contextlib.suppress(OSError, LeaseLostError):
            self._check()
            for file in self._folder.glob("request-*.json"):
                self._write_answer(file.stem.removeprefix("request-"), ended)
                file.unlink(missing_ok=True)
            heartbeat_path(self._folder.parent).unlink(missing_ok=True)


def heartbeat_path(run_folder: Path) -> Path:
    """Return where a run shows that it lives."""
    return run_folder / FOLDER / "heartbeat.json"


def ask(run_folder: Path, key: str, value: Any, say: Callable[[str], None] = print) -> Answer:
    """Ask the run of a folder to change `key` to `value`; wait for its answer.

    Raises UserError where there is no such folder or no run goes on in it, WaitTimeoutError where the run shows no
    life any more or does not answer within the time that it gives an action.
    """
    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: no such run folder; give run.name (and run.dir) of a run that goes on")
    folder = run_folder / FOLDER
    life = _Life(folder)
    life.check()
    request_id = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
    request, answer = folder / f"request-{request_id}.json", folder / f"answer-{request_id}.json"
    write_json(request, {"id": request_id, "key": key, "value": value})
    say(f"asked the run in {run_folder} for {key}={value}; waiting for up to {life.timeout_s:g} s")
    end = time.monotonic() + life.timeout_s + SIGN_OF_LIFE_S
    try:
        while not answer.exists():
            try:
                life.look()
            except UserError:
                if answer.exists():
                    break
                raise
            if time.monotonic() > end:
                raise WaitTimeoutError(f"the run in {run_folder} to answer {key}={value}", life.timeout_s)
            time.sleep(POLL_S / 4)
        found = json.loads(answer.read_text(encoding="utf-8"))
    finally:
        request.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
    return Answer(found["status"], found["message"])


class _Life:
    """Tells from the heartbeat whether a run goes on."""

    def __init__(self, folder: Path) -> None:
        self._file = heartbeat_path(folder.parent)
        self._last = self._read()
        self._seen = time.monotonic()
        self.timeout_s = float(self._last["timeout_s"])

    def check(self) -> None:
        """Wait for one beat; raises UserError where there is none."""
        first = self._last.get("beat")
        try:
            while self._last.get("beat") == first:
                self.look()
                time.sleep(POLL_S / 4)
        except WaitTimeoutError as error:
            raise UserError(f"no run goes on in {self._file.parent.parent}: {error}") from None

    def look(self) -> None:
        """Raise UserError where the run has ended, WaitTimeoutError where it stands still."""
        life = self._read()
        if life.get("beat") != self._last.get("beat"):
            self._last, self._seen = life, time.monotonic()
        elif time.monotonic() - self._seen > SIGN_OF_LIFE_S:
            where = f"process {life['pid']} on {life['host']}, last seen {life['time']}"
            raise WaitTimeoutError(f"a sign of life of the run ({where})", SIGN_OF_LIFE_S)

    def _read(self) -> dict[str, Any]:
        try:
            life = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no run goes on in {self._file.parent.parent}: {self._file} is not there") from None
        if life["host"] == socket.gethostname() and not Path(f"/proc/{life['pid']}").exists():
            raise UserError(f"no run goes on in {self._file.parent.parent}: process {life['pid']} has ended")
        return life
