"""What every stage that runs for a while shares: signals, an orderly end, and a summary whatever happens."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable

import ray

from launch.cluster import connect
from launch.summary import Status
from lwz_ray.config import Config
from lwz_ray.errors import UserError


class Lifecycle:
    """Runs a stage's work once. The work sets `finished` when it is done, `graceful` while it ends by itself."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.stop = asyncio.Event()
        """Set by SIGINT and SIGTERM."""
        self.graceful = False
        """While true, the work sees `stop` itself and ends in order; otherwise it is cancelled."""
        self.finished = False
        self.logs = ""

    async def run(self, work: Callable[[], Awaitable[None]], end: Callable[[Status, str | None], None]) -> int:
        """Return 0 where the work finished, 130 where it was stopped; errors propagate after `end(status, error)`."""
        self._watch_signals()
        status: Status = "failed"
        error: str | None = "ended without a reason"
        try:
            await self._until_stopped(work())
            status, error = ("completed" if self.finished else "interrupted"), None
        except UserError as problem:
            error = str(problem)
            raise
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem} (Ray's logs: {self.logs})"
            raise
        finally:
            ray.shutdown()
            end(status, error)
        return 130 if status == "interrupted" else 0

    def connect(self) -> None:
        """Start or join the Ray cluster of the config."""
        self.logs = connect(self.config)
        # Ray takes over SIGTERM when it starts, and would end this process in the middle of a step.
        self._watch_signals()

    def say(self, text: str) -> None:
        print(text, flush=True)

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self.stop.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done() and not self.graceful:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._ask_to_stop, signal.Signals(number).name)

    def _ask_to_stop(self, name: str) -> None:
        if not self.stop.is_set():
            self.say(f"{name}: ending after the present step, with a checkpoint")
            self.stop.set()
