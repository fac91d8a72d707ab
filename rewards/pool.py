"""Spreads texts over the replicas of a reward model; replicas come and go while it works.

score_one, score_texts ──▶ waiting texts ──▶ a batch for each idle replica ──▶ scores
  (of any group)               ▲  oldest first, with texts of like length
                               └── a batch that failed, or whose replica left: its texts
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError
from rewards.pairs import ClassifierScores
from rewards.pool_counters import PoolCounters
from rewards.pool_queue import PendingText, Replica, ReplicaLostError, TextScore, Worker, fail, pick

log = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 3


class RewardPool:
    """Gives each idle replica a batch of what waits, whatever group it is of; a `TextScorer`.

    The text that waited longest goes first, and those nearest to its length go with it. A text whose batch failed or
    was late is tried once more, alone, on another replica. The replica that failed is passed over for
    `request_timeout_s` while others are left: a dead one answers at once and would draw every batch. After
    `MAX_FAILURES_IN_A_ROW`, or where its process is gone, it leaves the pool. With `on_lost` somebody replaces those
    that leave: it is called with (name, reason), and while no replica is there texts wait for one, each for
    `request_timeout_s`. Without, the last one stays. To be used on one event loop.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        batch_size: int,
        request_timeout_s: float,
        on_lost: Callable[[str, str], None] | None = None,
    ) -> None:
        """replicas: named "1", "2", … in order; may be none with `on_lost`. request_timeout_s: of one attempt."""
        if (not replicas and on_lost is None) or batch_size < 1 or request_timeout_s <= 0:
            raise ValueError(
                f"reward pool: {len(replicas)} replicas, batch_size={batch_size}, request_timeout_s="
                f"{request_timeout_s:g}: each must be above 0"
            )
        self._workers = {str(i): Worker(str(i), ask) for i, ask in enumerate(replicas, start=1)}
        self._leaving: set[asyncio.Task[None]] = set()
        self._batch_size = batch_size
        self._request_timeout_s = request_timeout_s
        self._on_lost = on_lost
        self._waiting: list[PendingText] = []
        self._closed = False
        self.counters = PoolCounters(batch_size)

    @property
    def num_replicas(self) -> int:
        return len(self._workers)

    @property
    def num_retries(self) -> int:
        """Texts that needed a second attempt so far."""
        return self.counters.total.retries

    @property
    def num_windowed(self) -> int:
        """Texts longer than the reward model's context so far."""
        return self.counters.total.windowed

    async def score_texts(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Return one raw score a pair, in order; raises InfrastructureError where both attempts at one failed."""
        if len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} prompts and {len(texts)} texts: a pair needs one of each")
        return [score.value for score in await self._score(list(zip(prompts, texts, strict=True)))]

    async def score_one(self, prompt: str, text: str) -> TextScore:
        """Return one text's score; batched with what others ask for at the same time. Raises as `score_texts`."""
        (score,) = await self._score([(prompt, text)])
        return score

    def add_replica(self, name: str, replica: Replica) -> None:
        """Let a replica take part from now on."""
        if name in self._workers:
            raise ValueError(f"reward pool: there is a replica {name} already")
        self._workers[name] = Worker(name, replica)
        for worker in [w for w in self._workers.values() if w.lost]:
            self._drop(worker, "its process is gone")  # it was the last one, which stays until another comes
        self._dispatch()

    async def remove_replica(self, name: str, timeout_s: float) -> None:
        """Give a replica no more batches and wait for the one it has; what is late goes to another replica.

        Raises UserError for the last replica, ValueError for one that is not there.
        """
        if name not in self._workers:
            raise ValueError(f"reward pool: there is no replica {name}")
        if len(self._workers) == 1:
            raise UserError(f"reward replica {name} is the last one of the pool and stays; start another one first")
        batch = self._workers.pop(name).batch
        if batch is not None:
            self._leaving.add(batch)
            batch.add_done_callback(self._leaving.discard)
            _, late = await asyncio.wait({batch}, timeout=timeout_s)
            if late:
                log.warning("reward replica %s did not end its batch in %g s: another one takes it", name, timeout_s)
                batch.cancel()
                await asyncio.wait({batch})
        self._dispatch()

    def lose_replica(self, name: str, reason: str) -> None:
        """Take out a replica that is gone or frozen; what it has goes to others. One that has left is left alone."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return
        self.counters.lost()
        log.warning("reward replica %s was taken out, %d are left: %s", name, len(self._workers), reason)
        if worker.batch is not None:
            self._leaving.add(worker.batch)
            worker.batch.add_done_callback(self._leaving.discard)
            worker.batch.cancel()
        self._dispatch()

    async def close(self) -> None:
        """Stop scoring; whoever still waits gets an InfrastructureError."""
        self._closed = True
        batches = [w.batch for w in self._workers.values() if w.batch is not None] + list(self._leaving)
        for batch in batches:
            batch.cancel()
        await asyncio.gather(*batches, return_exceptions=True)
        for text in self._waiting:
            fail(text, InfrastructureError("the reward pool was closed"))
        self._waiting.clear()

    def metrics(self) -> dict[str, float]:
        """Return `pool/what` numbers since the previous call; never waits."""
        now = {"pool/replicas": float(len(self._workers)), "pool/waiting": float(len(self._alive()))}
        return now | self.counters.take()

    async def _score(self, pairs: Sequence[tuple[str, str]]) -> list[TextScore]:
        if self._closed:
            raise InfrastructureError("the reward pool was closed")
        loop = asyncio.get_running_loop()
        texts = [PendingText(prompt, text, loop.create_future()) for prompt, text in pairs]
        self._waiting.extend(texts)
        self._dispatch()
        try:
            return list(await asyncio.gather(*(t.score for t in texts)))
        finally:
            # After a failure, or when the caller stopped waiting, the others are of no use.
            for text in texts:
                text.score.cancel()

    def _dispatch(self) -> None:
        """Give every idle replica a batch of what it may take."""
        if self._closed:
            return
        self._waiting = self._alive()
        now = time.monotonic()
        if self._waiting and not self._workers:
            self._give_up(now)
        for worker in sorted(self._workers.values(), key=lambda w: w.avoid_until > now):
            if worker.batch is None and (
                batch := pick(self._waiting, worker, list(self._workers.values()), self._batch_size)
            ):
                taken = set(map(id, batch))
                self._waiting = [t for t in self._waiting if id(t) not in taken]
                worker.batch = asyncio.get_running_loop().create_task(self._run(worker, batch))

    def _give_up(self, now: float) -> None:
        """Fail what has waited too long for a replica to be there; look again when the next one has."""
        for text in self._waiting:
            if now - text.asked >= self._request_timeout_s:
                fail(text, WaitTimeoutError("a reward replica to be there", self._request_timeout_s))
        self._waiting = self._alive()
        if self._waiting:
            wait_s = self._request_timeout_s - (now - min(t.asked for t in self._waiting))
            asyncio.get_running_loop().call_later(wait_s + 0.01, self._dispatch)

    def _alive(self) -> list[PendingText]:
        """Return what waits and is still wanted."""
        return [t for t in self._waiting if not t.score.done()]

    async def _run(self, worker: Worker, batch: list[PendingText]) -> None:
        """Score one batch on one replica; every text of it ends up answered, failed or waiting again."""
        try:
            answer = await self._ask(worker, batch)
        except asyncio.CancelledError:
            self._waiting[:0] = batch
            raise
        except UserError as error:
            self._refused(batch, error)
        except InfrastructureError as error:
            self._failed(worker, batch, error)
        else:
            worker.failures, worker.avoid_until = 0, 0.0
            self.counters.count(answer)
            for text, value, coverage in zip(batch, answer.values, answer.coverage, strict=True):
                if not text.score.done():
                    text.score.set_result(TextScore(value, coverage))
        finally:
            worker.batch = None
            self._dispatch()

    def _refused(self, batch: list[PendingText], error: UserError) -> None:
        """Pass on what no other replica would take either, to the text that it is about."""
        if len(batch) == 1:
            fail(batch[0], error)
            return
        for text in batch:
            text.alone = True
        self._waiting[:0] = batch

    def _failed(self, worker: Worker, batch: list[PendingText], error: InfrastructureError) -> None:
        worker.failures += 1
        worker.avoid_until = time.monotonic() + self._request_timeout_s
        asyncio.get_running_loop().call_later(self._request_timeout_s * 1.001, self._dispatch)
        worker.lost = worker.lost or isinstance(error, ReplicaLostError)
        again = []
        for text in batch:
            if text.failure is not None:
                fail(text, InfrastructureError(f"{error}; before that, {text.failure}"))
            elif not any(name != worker.name for name in self._workers) and not self._is_replaced(worker):
                fail(text, error)
            else:
                text.failed_on, text.failure, text.alone = worker.name, error, True
                self.counters.retry()
                again.append(text)
        self._waiting[:0] = again
        if worker.lost or worker.failures >= MAX_FAILURES_IN_A_ROW:
            self._drop(worker, str(error))

    def _is_replaced(self, worker: Worker) -> bool:
        """Say whether another replica will come in its place."""
        return self._on_lost is not None and worker.lost

    def _drop(self, worker: Worker, reason: str) -> None:
        """Take a lost replica out, unless it has left already, or is the last one and nobody replaces it."""
        is_last = len(self._workers) == 1 and self._on_lost is None
        if is_last or self._workers.get(worker.name) is not worker:
            return
        del self._workers[worker.name]
        self.counters.lost()
        log.warning("reward replica %s left the pool, %d are left: %s", worker.name, len(self._workers), reason)
        if self._on_lost is not None:
            self._on_lost(worker.name, reason)

    async def _ask(self, worker: Worker, batch: Sequence[PendingText]) -> ClassifierScores:
        """Make one attempt."""
        name = f"reward replica {worker.name}"
        try:
            call = worker.ask([t.prompt for t in batch], [t.text for t in batch])
            answer = await asyncio.wait_for(call, self._request_timeout_s)
        except TimeoutError as error:
            raise WaitTimeoutError(f"{name} to score {len(batch)} answers", self._request_timeout_s) from error
        except UserError:
            raise
        except Exception as error:  # whatever a replica died of is the reason that is passed on
            kind = ReplicaLostError if isinstance(error, ReplicaLostError) else InfrastructureError
            raise kind(f"{name} failed: {type(error).__name__}: {_last_line(error)}") from error
        if len(answer.values) != len(batch) or len(answer.coverage) != len(batch):
            raise InfrastructureError(f"{name} gave {len(answer.values)} scores for {len(batch)} answers")
        return answer


def _last_line(error: Exception) -> str:
    """Return the last line that says something: a remote error's text ends with the error itself."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), "no message").strip()
