"""The rollout pool's hands: sends waiting samples to engines and takes what comes back."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from actors.dispatch import DispatchSettings, EngineState, order_key
from actors.dispatch_counters import DispatchCounters
from actors.engine import DirtyEngineError
from actors.lengths import LengthEstimate
from actors.pending import DEADLINE_SLACK_S, PendingGroup, PendingSample, Sending, worker_request
from actors.streams import CompletionStream, StreamCall
from lwz_ray.errors import InfrastructureError, UserError
from lwz_ray.records import Completion

log = logging.getLogger(__name__)

MARGIN_S = 30.0
"""An engine is given this much longer than the group has: the pool, which knows more, gives up first."""
RETRY_S = 1.0
"""An engine whose stream failed gets nothing for this long, twice as long after each further failure,"""
MAX_RETRY_S = 30.0
"""up to this."""
CLOCK_S = 1e-3
"""Timers of the event loop may be early by less than this."""


@dataclass(slots=True, eq=False)
class Worker:
    """An engine of the pool."""

    name: str
    call: StreamCall
    interrupt: Callable[[], Awaitable[None]] | None
    state: EngineState
    sendings: set[Sending] = field(default_factory=set)
    draining: bool = False
    failures: int = 0
    """Streams that failed since a sample came back."""
    avoid_until: float = 0.0
    last_failure: str | None = None

    def __str__(self) -> str:
        return self.name if self.last_failure is None else f"{self.name} (failed last with {self.last_failure})"

    @property
    def samples(self) -> list[PendingSample]:
        """Return what it is writing."""
        return [sample for sending in self.sendings for sample in sending.samples.values()]


class Dispatcher:
    """Sends, in order, what waits to engines with room; each sample ends up in its group's `results` exactly once."""

    def __init__(self, settings: DispatchSettings, on_failed: Callable[[str, str], None]) -> None:
        """on_failed(name, reason): an engine's stream failed."""
        self.settings = settings
        self.on_failed = on_failed
        self.workers: dict[str, Worker] = {}
        self.groups: set[PendingGroup] = set()
        self.counters = DispatchCounters()
        self.stopped = False
        self._turn = 0
        self._lengths = LengthEstimate()
        self._scheduled = False

    def schedule(self) -> None:
        """Send what can be sent, once everything that happens at this moment has happened."""
        if not self._scheduled and not self.stopped:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send_all)

    def take_out(self, worker: Worker, reason: str | None) -> None:
        """Let an engine's samples go to others and cancel its streams.

        reason: why it was lost, counted as an attempt of each sample; None: it left as planned.
        """
        if self.workers.get(worker.name) is worker:
            del self.workers[worker.name]
        for sending in list(worker.sendings):
            self._put_back(sending, reason and f"rollout engine {worker.name}: {reason}")
            sending.cancel()
        self.schedule()

    def expect(self, sending: Sending) -> None:
        """Guess anew how long samples will be that an engine is writing."""
        self._expect(sending.group, sending.samples.values())

    # Sending

    def _send_all(self) -> None:
        self._scheduled = False
        now = asyncio.get_running_loop().time()
        for group in self.groups:
            self._hand_out_late(group, now)
        for group in sorted(self.groups, key=lambda g: order_key(g, self.settings.order)):
            if not self._send_group(group, now) and self.settings.routing == "most_free_cache":
                break  # what comes later in the order must not overtake it

    def _send_group(self, group: PendingGroup, now: float) -> bool:
        """Send what is ready of a group; false where some of it found no engine with room."""
        while ready := group.ready(now + CLOCK_S):
            self._expect(group, ready)
            worker, number = self._choose(group, ready, now)
            if worker is None:
                return False
            self._send(worker, group, ready[:number], now)
        return True

    def _choose(self, group: PendingGroup, ready: list[PendingSample], now: float) -> tuple[Worker | None, int]:
        """Return the engine that is next for a group, and how many of its samples it takes."""
        able = [w for w in self.workers.values() if not w.draining and w.avoid_until <= now + CLOCK_S]
        if self.settings.routing == "round_robin" and able:
            own = [w for w in able if w.name == group.engine]
            if not own:
                own, self._turn = [able[self._turn % len(able)]], self._turn + 1
                group.engine = own[0].name
            able = own
        numbers = {w.name: w.state.num_admitted(w.samples, ready, now) for w in able}
        able = [w for w in able if numbers[w.name]]
        if not able:
            return None, 0
        best = max(able, key=lambda w: (w.state.free_tokens(w.samples, ready[0], now), -len(w.samples)))
        return best, numbers[best.name]

    def _send(self, worker: Worker, group: PendingGroup, samples: list[PendingSample], now: float) -> None:
        for sample in samples:
            group.waiting.remove(sample)
            self.counters.taken_up += sample.prior is not None
            if sample.first_sent_at is None:
                self.counters.waits_s.append(now - group.asked_at)
        group.begun = True
        request = worker_request(group, samples, now, self.settings.sample_deadline_s)
        sending = Sending(worker.name, group, {s.index: s for s in samples})
        worker.state.sent()
        worker.sendings.add(sending)
        group.sendings.add(sending)
        stream = worker.call(request, group.deadline - now + MARGIN_S)
        sending.task = asyncio.get_running_loop().create_task(self._receive(worker, sending, stream))
        # Not for the task to do: one that is cancelled before it begins does nothing.
        sending.task.add_done_callback(lambda _: self._over(worker, sending))

    def _expect(self, group: PendingGroup, samples: Iterable[PendingSample]) -> None:
        limit = self.settings.max_tokens if group.request.max_tokens is None else group.request.max_tokens
        tokens = self._lengths.expect(group.request.requested_words, limit)
        for sample in samples:
            sample.expected_tokens = tokens

    # Receiving

    async def _receive(self, worker: Worker, sending: Sending, stream: CompletionStream) -> None:
        """Read one engine's answer; every sample of it ends up handed out or waiting again, or was taken out."""
        failure: BaseException | None = None
        try:
            async with contextlib.aclosing(stream) as ended:
                async for index, completion in ended:
                    self._came_back(worker, sending, index, completion)
            if sending.samples:
                failure = InfrastructureError(f"it ended its stream without {len(sending.samples)} samples")
        except asyncio.CancelledError as error:
            if sending.cancelled:
                raise
            failure = error  # the engine's own doing
        except Exception as error:  # whatever an engine died of is the reason that is passed on
            failure = error
        if failure is not None and not sending.cancelled:
            self._failed(worker, sending, failure)

    def _over(self, worker: Worker, sending: Sending) -> None:
        worker.sendings.discard(sending)
        sending.group.sendings.discard(sending)
        self.schedule()

    def _came_back(self, worker: Worker, sending: Sending, index: int, completion: Completion) -> None:
        group, sample = sending.group, sending.samples.pop(index, None)
        if sample is None:
            if sending.cancelled:
                return
            raise InfrastructureError(f"it sent sample {index} unasked or twice")
        worker.failures = 0
        now = asyncio.get_running_loop().time()
        deadline = sample.deadline(self.settings.sample_deadline_s)
        late = deadline is not None and now >= deadline - DEADLINE_SLACK_S and completion.num_tokens > 0
        if completion.finish_reason != "abort" or late:
            self._hand_out(group, sample, completion, now)
        else:
            sample.keep(completion, now)
            self._wait_again(group, sample)

    def _hand_out(self, group: PendingGroup, sample: PendingSample, completion: Completion, now: float) -> None:
        self.counters.past_deadline += completion.finish_reason == "abort"
        if sample.first_sent_at is not None:
            self.counters.samples_s.append(now - sample.first_sent_at)
        self._lengths.saw(group.request.requested_words, completion.num_tokens)
        group.results.put_nowait((sample.index, completion))
        self.schedule()

    def _hand_out_late(self, group: PendingGroup, now: float) -> None:
        """End samples whose deadline passed while they waited for an engine to go on with them."""
        for sample in list(group.waiting):
            deadline = sample.deadline(self.settings.sample_deadline_s)
            if sample.prior is not None and deadline is not None and deadline <= now + CLOCK_S:
                group.waiting.remove(sample)
                self._hand_out(group, sample, sample.prior, now)

    def _wait_again(self, group: PendingGroup, sample: PendingSample) -> None:
        """Let a sample wait; look again when it may be sent, and when it must be handed out."""
        group.put_back(sample)
        wake_at = asyncio.get_running_loop().call_at
        wake_at(sample.not_before, self.schedule)
        deadline = sample.deadline(self.settings.sample_deadline_s)
        if deadline is not None:
            wake_at(deadline, self.schedule)

    def _failed(self, worker: Worker, sending: Sending, error: BaseException) -> None:
        """Let the samples of a stream that failed wait for another engine, and tell the engine's owner."""
        if isinstance(error, UserError):  # another engine would refuse them too
            sending.take()
            sending.group.results.put_nowait(error)
            return
        reason = f"{type(error).__name__}: {_last_line(error)}"
        log.warning("rollout engine %s failed: %s", worker.name, reason)
        loop = asyncio.get_running_loop()
        worker.failures, worker.last_failure = worker.failures + 1, reason
        worker.avoid_until = loop.time() + min(RETRY_S * 2 ** (worker.failures - 1), MAX_RETRY_S)
        loop.call_at(worker.avoid_until, self.schedule)
        # An engine that waits for a full set of weights refuses what it has not begun: no attempt of the sample's.
        refused = isinstance(error, DirtyEngineError)
        self._put_back(sending, None if refused else f"rollout engine {worker.name}: {reason}")
        self.on_failed(worker.name, reason)

    def _put_back(self, sending: Sending, reason: str | None) -> None:
        """Let samples wait again, each as its next attempt; those without one left end their group."""
        most = self.settings.max_sample_attempts
        for sample in sending.take():
            sample.lose(reason)
            if len(sample.losses) < most:
                self.counters.redispatched += 1
                self._wait_again(sending.group, sample)
                continue
            last = "; ".join(dict.fromkeys(sample.losses[-3:]))
            message = f"sample {sample.index} of a prompt lost its engine {len(sample.losses)} times, failures."
            message += f"max_sample_attempts={most} allows no more attempts; the last reasons: {last}"
            sending.group.results.put_nowait(InfrastructureError(message))


def _last_line(error: BaseException) -> str:
    """Return the last line that says something: a remote error's text ends with the error itself."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), "no message").strip()
