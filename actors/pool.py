"""Rollouts over engines that come and go: each sample of each group ends exactly once, wherever it is written.

stream(request) ──▶ waiting samples ──▶ an engine with room ──▶ results ──▶ whoever asked
                        ▲  in order       (actors/dispatch.py)
                        ├── interrupted (weight update, draining): with the tokens so far
                        └── its engine was lost: from what was kept, as the next attempt
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from actors.dispatch import DispatchSettings, EngineState
from actors.dispatcher import Dispatcher, Worker
from actors.load import EngineLoad
from actors.pending import PendingGroup, PendingSample, Sending
from actors.streams import CompletionStream, StreamCall
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError
from lwz_ray.records import Completion, RolloutRequest

log = logging.getLogger(__name__)

END_TIMEOUT_S = 30.0
"""For streams that are closed to be closed, and for interrupted samples to come back."""


class RolloutPool:
    """Implements `Rollouts` over the streams of N engines (Ray handles or in-process); for one event loop."""

    def __init__(
        self,
        timeout_s: float,
        settings: DispatchSettings,
        on_failed: Callable[[str, str], None] = lambda name, reason: None,
    ) -> None:
        """timeout_s: for one group, from asking to its last sample, waiting for an engine included.

        on_failed(name, reason): an engine's stream failed; whether the engine is lost is for its owner to find out.
        """
        self._timeout_s = timeout_s
        self._dispatcher = Dispatcher(settings, on_failed)
        self._num_asked = 0
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of those that take part; one that is being drained does not."""
        return tuple(w.name for w in self._dispatcher.workers.values() if not w.draining)

    @property
    def on_failed(self) -> Callable[[str, str], None]:
        """Called with (name, reason) where an engine's stream failed."""
        return self._dispatcher.on_failed

    @on_failed.setter
    def on_failed(self, call: Callable[[str, str], None]) -> None:
        self._dispatcher.on_failed = call

    def add_worker(self, name: str, call: StreamCall, interrupt: Callable[[], Awaitable[None]] | None = None) -> None:
        """Let an engine that serves the newest weights take part.

        interrupt: makes it end what it writes with finish reason `abort`; without it, what a drain interrupts is begun
        anew elsewhere.
        """
        if name in self._dispatcher.workers:
            raise ValueError(f"rollout pool: there is an engine {name} already")
        self._dispatcher.workers[name] = Worker(name, call, interrupt, EngineState(self._dispatcher.settings))
        self._dispatcher.schedule()

    async def remove_worker(self, name: str, timeout_s: float) -> None:
        """Give an engine nothing more and wait for what it writes; what is late goes on elsewhere.

        Raises UserError for the last one, ValueError for one that is not there.
        """
        worker = self._dispatcher.workers.get(name)
        if worker is None or worker.draining:
            raise ValueError(f"rollout pool: there is no engine {name} to remove, there are {_names(self.workers)}")
        if len(self.workers) == 1:
            raise UserError(f"rollout engine {name} is the last one of the pool and stays; start another one first")
        worker.draining = True
        try:
            await _ended(worker.sendings, timeout_s)
            if worker.sendings and worker.interrupt is not None:
                await self._interrupt(worker, worker.interrupt)
        finally:
            sendings = list(worker.sendings)
            self._dispatcher.take_out(worker, None)
            await self._end(sendings)

    async def _interrupt(self, worker: Worker, interrupt: Callable[[], Awaitable[None]]) -> None:
        """Ask an engine to give back what it has of each sample; where it fails to, samples are begun anew."""
        try:
            await asyncio.wait_for(interrupt(), END_TIMEOUT_S)
        except Exception as error:
            log.warning("rollout engine %s did not give back its samples: %r", worker.name, error)
            return
        await _ended(worker.sendings, END_TIMEOUT_S)

    def lose_worker(self, name: str, reason: str) -> None:
        """Take out an engine that is gone or frozen; its samples go to others, each as its next attempt.

        One that is not there has been taken out already.
        """
        worker = self._dispatcher.workers.get(name)
        if worker is not None:
            log.warning("rollout engine %s is lost: %s", name, reason)
            for task in [s.task for s in worker.sendings if s.task is not None]:
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
            self._dispatcher.take_out(worker, reason)

    def observe(self, name: str, load: EngineLoad) -> None:
        """Take what an engine's heartbeat says of it; one that has left is no longer of interest."""
        worker = self._dispatcher.workers.get(name)
        if worker is None:
            return
        for sending in worker.sendings:
            self._dispatcher.expect(sending)
        now = asyncio.get_running_loop().time()
        self._dispatcher.counters.preemptions += worker.state.observe(load, worker.samples, now)
        self._dispatcher.schedule()

    async def stream(self, request: RolloutRequest) -> CompletionStream:
        """Yield the group's samples as they end, every index once.

        Raises WaitTimeoutError that says what it waited for, InfrastructureError where a sample's engines were lost too
        often or the pool was closed, and a UserError of an engine as it is.
        """
        if self._closed:
            raise InfrastructureError("the rollout pool was closed")
        group = self._open(request)
        try:
            while group.num_missing:
                yield await self._next(group)
        finally:
            self._dispatcher.groups.discard(group)
            for sending in group.sendings:
                sending.take()
            await self._end(group.sendings)
            self._dispatcher.schedule()

    async def close(self) -> None:
        """Stop writing; whoever still waits gets an InfrastructureError."""
        self._closed = self._dispatcher.stopped = True
        sendings = [sending for worker in self._dispatcher.workers.values() for sending in worker.sendings]
        for sending in sendings:
            sending.take()
        for group in self._dispatcher.groups:
            group.results.put_nowait(InfrastructureError("the rollout pool was closed"))
        self._dispatcher.workers.clear()
        await self._end(sendings)
        if self._ending:
            await asyncio.wait(self._ending, timeout=END_TIMEOUT_S)

    def metrics(self) -> dict[str, float]:
        """Return `dispatch/what` and `rollout/what` numbers, counts since the last call; never waits."""
        workers = self._dispatcher.workers.values()
        num_waiting = sum(len(group.waiting) for group in self._dispatcher.groups)
        num_open = sum(len(worker.samples) for worker in workers)
        return self._dispatcher.counters.take([w.state for w in workers], num_waiting, num_open)

    def _open(self, request: RolloutRequest) -> PendingGroup:
        limit = self._dispatcher.settings.max_tokens if request.max_tokens is None else request.max_tokens
        most = float("inf") if limit is None else float(limit)
        samples = [PendingSample(i, len(request.prompt_token_ids), most) for i in range(request.num_samples)]
        now = asyncio.get_running_loop().time()
        group = PendingGroup(request, self._num_asked, now, now + self._timeout_s, samples)
        self._num_asked += 1
        self._dispatcher.groups.add(group)
        self._dispatcher.schedule()
        return group

    async def _next(self, group: PendingGroup) -> tuple[int, Completion]:
        try:
            async with asyncio.timeout_at(group.deadline):
                item = await group.results.get()
        except TimeoutError:
            raise WaitTimeoutError(self._awaited(group), self._timeout_s) from None
        if isinstance(item, Exception):
            raise item
        group.num_missing -= 1
        return item

    def _awaited(self, group: PendingGroup) -> str:
        """Say what a group waits for."""
        parts = [f"{len(s.samples)} from rollout engine {s.engine}" for s in group.sendings if s.samples]
        waiting, engines = len(group.waiting), self._dispatcher.workers.values()
        if waiting and not engines:
            parts.append(f"{waiting} to be sent, but no rollout engine is there")
        elif waiting:
            there = _names(str(engine) for engine in engines)
            parts.append(f"{waiting} to be sent to a rollout engine with room, there are {there}")
        return f"{group.num_missing} of {group.request.num_samples} samples of a prompt ({', '.join(parts)})"

    async def _end(self, sendings: Iterable[Sending]) -> None:
        """Cancel streams and wait until they are closed."""
        sendings = list(sendings)
        for sending in sendings:
            sending.cancel()
        if late := await _ended(sendings, END_TIMEOUT_S):
            log.warning("streams of rollout engines did not close in %g s: %s", END_TIMEOUT_S, _names(late))


async def _ended(sendings: Iterable[Sending], timeout_s: float) -> list[str]:
    """Wait for streams to end; return the names of the engines whose did not."""
    tasks = {s.task: s.engine for s in sendings if s.task is not None}
    if not tasks:
        return []
    _, late = await asyncio.wait(tasks, timeout=timeout_s)
    return [tasks[task] for task in late]


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
