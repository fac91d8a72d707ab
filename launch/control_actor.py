"""Requests to a run through a Ray actor with a name: for a machine that reaches the run's cluster, not its folder.

stage=scale ──ask──▶ ControlActor (named after the run) ◀──take, answer── the run's driver

The actor belongs to the driver's Ray job and ends with it. A driver that stands still is noticed by its not taking.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError, RayActorError, RayError

from launch.cluster import join, kill_actor, reason_of
from launch.control import SIGN_OF_LIFE_S, Action, Answer, ControlWatcher
from lwz_ray.config import Config, RunConfig
from lwz_ray.errors import UserError, WaitTimeoutError

log = logging.getLogger(__name__)

NAMESPACE = "lwz_ray"
TAKE_S = 5.0
"""How long the driver waits for a request before it asks anew, which is its sign of life."""
RETRY_S = 2.0
MARGIN_S = 30.0
"""For Ray to carry a request and its answer."""


def actor_name(run: RunConfig) -> str:
    """Return the name of a run's actor: of two run folders with the same name, `run.dir` tells."""
    return f"control-{run.name}-{hashlib.sha256(run.dir.encode()).hexdigest()[:12]}"


class Desk:
    """Takes requests and hands them to the driver one after the other; lives in the Ray actor."""

    def __init__(self, timeout_s: float) -> None:
        """timeout_s: that the driver gives one action."""
        self._timeout_s = timeout_s
        self._waiting: asyncio.Queue[int] = asyncio.Queue()
        self._requests: dict[int, tuple[str, Any]] = {}
        self._answers: dict[int, asyncio.Future[tuple[str, str]]] = {}
        self._num_asked = 0
        self._taken = time.monotonic()

    async def ask(self, key: str, value: Any) -> tuple[str, str]:
        """Return (status, message) of what became of a request."""
        number = self._num_asked = self._num_asked + 1
        self._requests[number] = (key, value)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(number)
        end = time.monotonic() + self._timeout_s + SIGN_OF_LIFE_S
        try:
            while time.monotonic() < end:
                done, _ = await asyncio.wait({answer}, timeout=1.0)
                if done:
                    return answer.result()
                if time.monotonic() - self._taken > SIGN_OF_LIFE_S:
                    return "failed", str(WaitTimeoutError("a sign of life of the run's driver", SIGN_OF_LIFE_S))
            return "failed", f"{WaitTimeoutError(f'{key}={value}', self._timeout_s)}; the run may still act on it"
        finally:
            self._requests.pop(number, None)
            self._answers.pop(number, None)

    async def take(self, timeout_s: float) -> tuple[int, str, Any] | None:
        """Return (number, key, value) of the next request; None where none came in time."""
        end = time.monotonic() + timeout_s
        while True:
            self._taken = time.monotonic()
            try:
                number = await asyncio.wait_for(self._waiting.get(), max(0.0, end - time.monotonic()))
            except TimeoutError:
                return None
            if number in self._requests:  # whoever asked may have gone
                return (number, *self._requests[number])

    async def answer(self, number: int, status: str, message: str) -> None:
        future = self._answers.get(number)
        if future is not None and not future.done():
            future.set_result((status, message))

    async def alive(self) -> None:
        """Say that the driver is there, while an action runs."""
        self._taken = time.monotonic()

    async def timeout_s(self) -> float:
        """Return how long an asker may have to wait."""
        return self._timeout_s + SIGN_OF_LIFE_S


class Control:
    """The run's side of stage=scale: through its run folder, and through the cluster where others can reach it."""

    def __init__(
        self,
        config: Config,
        run_folder: Path,
        actions: Mapping[str, Action],
        timeout_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """actions: by the config key that they change. timeout_s: of one action. check: see `ControlWatcher`."""
        self._config, self._timeout_s = config, timeout_s
        self._watcher = ControlWatcher(run_folder, actions, timeout_s, check)
        self._desk: Any = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take requests. A cluster of this process alone is reached by nobody else."""
        await self._watcher.start()
        if self._config.cluster.address != "local":
            self._desk = await self._opened()
            self._task = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """Stop acting; whoever waits is told that the run has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            kill_actor(self._desk)
        await self._watcher.stop()

    async def _opened(self) -> Any:
        """Create the actor. One of its name belongs to a frozen driver, from which this one took the run folder."""
        name = actor_name(self._config.run)
        options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1}
        end = time.monotonic() + MARGIN_S
        while True:
            try:
                return ray.remote(Desk).options(**options).remote(self._timeout_s)
            except ActorAlreadyExistsError:
                if time.monotonic() > end:
                    raise
                log.warning("control: an earlier driver's actor %s is ended", name)
                with contextlib.suppress(ValueError):
                    kill_actor(ray.get_actor(name, namespace=NAMESPACE))
            await asyncio.sleep(RETRY_S)

    async def _serve(self) -> None:
        while True:
            try:
                request = await self._desk.take.remote(TAKE_S)
                if request is not None:
                    number, key, value = request
                    answer = await self._acted(key, value)
                    await self._desk.answer.remote(number, answer.status, answer.message)
            except RayError as error:  # such as: its node is gone; Ray starts it again on another one
                log.warning("control: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _acted(self, key: str, value: Any) -> Answer:
        """Act on a request, and give signs of life meanwhile."""
        acting = asyncio.create_task(self._watcher.act(key, value))
        try:
            while not (await asyncio.wait({acting}, timeout=TAKE_S))[0]:
                await self._desk.alive.remote()
            return acting.result()
        finally:
            acting.cancel()
            await asyncio.wait({acting})  # what it began is put back before the rooms close


def ask_cluster(config: Config, requests: Mapping[str, int], say: Callable[[str], None] = print) -> list[Answer]:
    """Ask the run of the config through its cluster; return an answer for each request.

    Raises UserError where no cluster answers or no run of that name goes on in it, WaitTimeoutError where the run does
    not answer.
    """
    address, name, wait_s = config.cluster.address, config.run.name, MARGIN_S
    join(address, {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False})
    try:
        desk: Any = ray.get_actor(actor_name(config.run), namespace=NAMESPACE)
        timeout_s = float(ray.get(desk.timeout_s.remote(), timeout=wait_s))
        wait_s += timeout_s
        answers = []
        for key, value in requests.items():
            say(f"asked the run {name} in the cluster {address} for {key}={value}; waiting for up to {timeout_s:g} s")
            found = ray.get(desk.ask.remote(key, value), timeout=wait_s)
            answers.append(Answer(*found))
        return answers
    except ValueError:
        raise UserError(
            f"no run {name} of run.dir={config.run.dir} goes on in the cluster {address}: give run.name and run.dir as "
            "they were given to the run"
        ) from None
    except RayActorError as error:
        raise UserError(f"the run {name} ended before it answered: {reason_of(error)}") from None
    except GetTimeoutError:
        raise WaitTimeoutError(f"the run {name} to answer through its cluster", wait_s) from None
    finally:
        ray.shutdown()
