"""What every stage that runs for a while shares: signals, an orderly end, and a summary whatever happens."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TextIO

import ray

from launch.cluster import connect
from launch.lease import Lease
from launch.run_folder import prepare_folder
from launch.summary import Status
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.failures import BudgetExceededError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def leased(config: Config) -> Iterator[Lease]:
    """Hold the config's run folder, created where it is not there yet, against every other driver.

    Raises UserError as `prepare_folder` and `Lease.take` do.
    """
    lease = Lease.take(prepare_folder(config.run), config.run.lease_timeout_s)
    try:
        yield lease
    finally:
        lease.release()


class Lifecycle:
    """Runs a stage's work once. The work sets `finished` when it is done, `graceful` while it ends by itself."""

    stops_asked = 0
    """Runs of this process that were asked to stop: where a run was just done, what would follow it is not begun."""

    def __init__(self, config: Config, lease: Lease, console: TextIO | None = None) -> None:
        """lease: of the run folder; when another driver takes it, the work is cancelled and nothing more is written.

        console: where `say` writes; None: standard output.
        """
        self.config = config
        self._console = console
        self._lease = lease
        self._taken = asyncio.Event()
        self.stop = asyncio.Event()
        """Set by SIGINT and SIGTERM."""
        self.graceful = False
        """While true, the work sees `stop` itself and ends in order; otherwise it is cancelled."""
        self.finished = False
        self.logs = ""

    async def run(self, work: Callable[[], Awaitable[None]], end: Callable[[Status, str | None], None]) -> int:
        """Return 0 where the work finished, 130 where it was stopped; errors propagate after `end(status, error)`.

        Where another driver took the run folder, `end` is not called: the folder's summary is that driver's.
        """
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._watch_signals()
        loop = asyncio.get_running_loop()
        self._lease.on_lost = lambda: loop.call_soon_threadsafe(self._taken.set)
        status: Status = "failed"
        error: str | None = "ended without a reason"
        try:
            await self._until_stopped(work())
            status, error = ("completed" if self.finished else "interrupted"), None
        except (UserError, BudgetExceededError) as problem:
            error = str(problem)
            raise
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}" + (f" (Ray's logs: {self.logs})" if self.logs else "")
            raise
        finally:
            self._note_signals()
            ray.shutdown()
            self._lease.on_lost = lambda: None
            try:
                if not self._lease.lost:
                    end(status, error)
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler or signal.SIG_DFL)
        return 130 if status == "interrupted" else 0

    def connect(self) -> None:
        """Start or join the Ray cluster of the config."""
        self.logs = connect(self.config)
        # Ray takes over SIGTERM when it starts, and would end this process in the middle of a step.
        self._watch_signals()

    def say(self, text: str) -> None:
        print(text, file=self._console or sys.stdout, flush=True)

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        stop, taken = (asyncio.create_task(event.wait()) for event in (self.stop, self._taken))
        await asyncio.wait([task, stop, taken], return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and not taken.done() and self.graceful:
            await asyncio.wait([task, taken], return_when=asyncio.FIRST_COMPLETED)
        for waiting in (stop, taken, task):
            waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self._lease.check()

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._ask_to_stop, signal.Signals(number).name)

    def _note_signals(self) -> None:
        """Take the signals without the event loop, which stands still while Ray and the trackers are closed."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, lambda taken, _: self._ask_to_stop(signal.Signals(taken).name))

    def _ask_to_stop(self, name: str) -> None:
        if not self.stop.is_set():
            how = "after the present step, with a checkpoint" if self.graceful else "now; what is done is kept"
            self.say(f"{name}: ending {how}")
            self.stop.set()
            Lifecycle.stops_asked += 1
