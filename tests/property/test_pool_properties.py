"""The rollout pool under any order of losses, drains, joins, interruptions and heartbeats, against plain lists."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.dispatch import DispatchSettings
from actors.pool import RolloutPool
from actors.tasks import attempt_seed
from lwz_ray.records import RolloutRequest
from tests.pool_parts import Call, HandEngine, load, settle

Sample = tuple[int, int]
"""(group, sample index)"""


class Pool(RuleBasedStateMachine):
    """Asks for groups and plays their engines. After every move everything that can be sent has been sent."""

    @initialize(
        order=st.sampled_from(["longest_first", "first_come"]),
        concurrency=st.sampled_from(["cache", "fixed"]),
        max_num_seqs=st.integers(1, 4),
    )
    def start(self, order: str, concurrency: str, max_num_seqs: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("actors.dispatcher.RETRY_S", 0.0)
        self.patch.setattr("actors.pending.FRUITLESS_WAIT_S", 0.0)
        self.order, self.concurrency, self.max_num_seqs = order, concurrency, max_num_seqs
        self.runner = asyncio.Runner()
        self.requests: list[RolloutRequest] = []
        self.came: dict[int, list[int]] = {}
        self.readers: dict[int, asyncio.Task[None]] = {}
        self.engines: dict[str, HandEngine] = {}
        self.gone: list[HandEngine] = []
        self.drains: list[asyncio.Task[None]] = []
        self.kept: dict[Sample, int] = {}
        self.attempts: dict[Sample, int] = {}
        self.begun: set[int] = set()
        self.num_seen: dict[HandEngine, int] = {}
        self.run(self.make(order, concurrency))

    async def make(self, order: Any, concurrency: Any) -> None:
        self.pool = RolloutPool(
            1000.0,
            DispatchSettings(
                order=order, concurrency=concurrency, max_num_seqs=self.max_num_seqs, max_sample_attempts=10**6
            ),
        )
        self.join()

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        async def then_settle() -> None:
            await work
            await settle(30)

        self.runner.run(then_settle())

    async def read(self, group: int) -> None:
        async with contextlib.aclosing(self.pool.stream(self.requests[group])) as stream:
            async for index, completion in stream:
                assert completion.num_tokens > self.kept.get((group, index), 0)
                self.came[group].append(index)

    def join(self) -> None:
        engine, name = HandEngine(), f"e{len(self.engines) + len(self.gone)}"
        self.engines[name] = engine
        self.pool.add_worker(name, engine.stream, self.interrupting(engine))

    def interrupting(self, engine: HandEngine) -> Any:
        async def interrupt() -> None:
            for call, index in engine.writing:
                self.send(engine, call, index, 1, "abort")

        return interrupt

    def send(self, engine: HandEngine, call: Call, index: int, more: int, reason: Any) -> None:
        """Let an engine end one sample with `more` tokens than it was asked to go on from."""
        sample = (call.request.prompt_token_ids[0], index)
        engine.end(call, index, self.kept.get(sample, 0) + more, reason)
        if reason == "abort":
            self.kept[sample] = self.kept.get(sample, 0) + more

    def writing(self) -> list[tuple[HandEngine, Call, int]]:
        engines = [*self.engines.values(), *self.gone]
        return [(engine, call, index) for engine in engines for call, index in engine.writing]

    def waiting(self) -> set[int]:
        """Groups of which some sample is neither here nor with an engine."""
        busy = {(call.request.prompt_token_ids[0], index) for _, call, index in self.writing()}
        return {
            group
            for group in self.readers
            for index in range(self.requests[group].num_samples)
            if index not in self.came[group] and (group, index) not in busy
        }

    def key(self, group: int) -> tuple[int, ...]:
        if self.order == "first_come":
            return (group,)
        request = self.requests[group]
        return (request.round_index, group not in self.begun, -request.requested_words, group)

    @rule(num=st.integers(1, 5), words=st.sampled_from([0, 50, 500]), round_index=st.integers(0, 2))
    def ask(self, num: int, words: int, round_index: int) -> None:
        async def work() -> None:
            group = len(self.requests)
            self.requests.append(
                RolloutRequest([group], num, 100 * group, requested_words=words, round_index=round_index)
            )
            self.came[group] = []
            self.readers[group] = asyncio.create_task(self.read(group))

        self.run(work())

    @precondition(lambda self: self.writing())
    @rule(data=st.data(), reason=st.sampled_from(["stop", "stop", "length", "abort"]), more=st.integers(0, 3))
    def end(self, data: st.DataObject, reason: str, more: int) -> None:
        async def work() -> None:
            engine, call, index = data.draw(st.sampled_from(self.writing()))
            self.send(engine, call, index, more + (reason != "abort"), reason)

        self.run(work())

    @precondition(lambda self: self.writing())
    @rule(data=st.data(), broken=st.booleans())
    def fail(self, data: st.DataObject, broken: bool) -> None:
        async def work() -> None:
            _, call, _ = data.draw(st.sampled_from(self.writing()))
            call.events.put_nowait(RuntimeError("broken") if broken else None)

        self.run(work())

    @precondition(lambda self: self.engines)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        async def work() -> None:
            name = data.draw(st.sampled_from(sorted(self.engines)))
            self.gone.append(self.engines.pop(name))
            self.pool.lose_worker(name, "gone")

        self.run(work())

    @precondition(lambda self: len(self.engines) > 1)
    @rule(data=st.data(), timeout_s=st.sampled_from([0.0, 1000.0]))
    def drain(self, data: st.DataObject, timeout_s: float) -> None:
        async def work() -> None:
            name = data.draw(st.sampled_from(sorted(self.engines)))
            self.gone.append(self.engines.pop(name))
            self.drains.append(asyncio.create_task(self.pool.remove_worker(name, timeout_s)))

        self.run(work())

    @rule()
    def joins(self) -> None:
        async def work() -> None:
            self.join()

        self.run(work())

    @precondition(lambda self: self.engines)
    @rule(
        data=st.data(), usage=st.floats(0, 1), preemptions=st.integers(0, 2), size=st.sampled_from([0, 50, 1000, 5000])
    )
    def observe(self, data: st.DataObject, usage: float, preemptions: int, size: int) -> None:
        async def work() -> None:
            name = data.draw(st.sampled_from(sorted(self.engines)))
            self.pool.observe(name, load(usage, size, num_preemptions=preemptions, num_running=1))

        self.run(work())

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        async def work() -> None:
            group = data.draw(st.sampled_from(sorted(self.readers)))
            reader = self.readers.pop(group)
            reader.cancel()
            await asyncio.wait({reader}, timeout=10.0)

        self.run(work())

    @invariant()
    def what_was_sent_was_next_and_goes_on_where_it_was(self) -> None:
        """Nothing that still waits stood before what was sent by the last move."""
        engines = [*self.engines.values(), *self.gone]
        new = [r for e in engines for r in e.requests[self.num_seen.get(e, 0) :]]
        self.num_seen = {e: len(e.requests) for e in engines}
        sent = {request.prompt_token_ids[0] for request in new}
        assert all(self.key(w) > self.key(s) for w in self.waiting() for s in sent if w != s)
        self.begun |= sent
        for request in new:
            (group,) = request.prompt_token_ids
            for task in request.tasks:
                sample = (group, task.sample_index)
                assert task.attempt == self.attempts.get(sample, -1) + 1
                assert task.seed == attempt_seed(100 * group, task.sample_index, task.attempt)
                assert (0 if task.prior is None else task.prior.num_tokens) == self.kept.get(sample, 0)
                self.attempts[sample] = task.attempt

    @invariant()
    def samples_are_in_one_place_and_engines_within_their_limits(self) -> None:
        places = [(call.request.prompt_token_ids[0], index) for _, call, index in self.writing()]
        places += [(group, index) for group, came in self.came.items() for index in came]
        assert len(places) == len(set(places))
        waits = self.waiting()
        for engine in self.engines.values():
            assert len(engine.writing) <= self.max_num_seqs
            if waits:
                assert len(engine.writing) == self.max_num_seqs or (self.concurrency == "cache" and engine.writing)

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return

        async def finish() -> None:
            if not self.engines:
                self.join()
            for _ in range(10_000):
                await settle(30)
                if not self.writing():
                    break
                for engine, call, index in self.writing():
                    self.send(engine, call, index, 1, "stop")
            for group, reader in self.readers.items():
                await asyncio.wait_for(reader, 10.0)
                assert sorted(self.came[group]) == list(range(self.requests[group].num_samples))
            await asyncio.wait_for(asyncio.gather(*self.drains), 10.0)
            assert not any(worker.sendings for worker in self.pool._dispatcher.workers.values())
            await self.pool.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        try:
            self.runner.run(finish())
        finally:
            self.runner.close()
            self.patch.undo()


Pool.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPool = Pool.TestCase
