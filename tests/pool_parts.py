"""What tests of the rollout pool share: an engine whose samples end when the test says so."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.dispatch import DispatchSettings
from actors.load import EngineLoad
from actors.pool import RolloutPool
from actors.streams import CompletionStream
from actors.tasks import SampleTask, WorkerRequest
from lwz_ray.records import Completion, FinishReason, RolloutRequest, VersionSpan
from tests.rollout_parts import collect


def completion(num_tokens: int, finish_reason: FinishReason = "stop") -> Completion:
    """Return a completion whose tokens are 1, 2, 3, …."""
    tokens = np.arange(1, num_tokens + 1, dtype=np.int32)
    spans = (VersionSpan(0, num_tokens, 0),)
    return Completion(f"{num_tokens} tokens", tokens, -tokens.astype(np.float32), finish_reason, spans)


def load(cache_usage: float = 0.0, cache_tokens: int = 1000, **changes: int) -> EngineLoad:
    """Return a heartbeat's numbers."""
    numbers = {"policy_version": 0, "num_running": 0, "num_waiting": 0, "num_preemptions": 0, "num_generated_tokens": 0}
    return EngineLoad(cache_usage=cache_usage, cache_tokens=cache_tokens, **(numbers | changes))


@dataclass(eq=False)
class Call:
    """One request that an engine is working on."""

    request: WorkerRequest
    missing: dict[int, SampleTask]
    events: "asyncio.Queue[tuple[int, Completion] | Exception | None]" = field(default_factory=asyncio.Queue)


class HandEngine:
    """Keeps every request and sends what the test gives it."""

    def __init__(self) -> None:
        self.requests: list[WorkerRequest] = []
        self.timeouts_s: list[float] = []
        self.calls: list[Call] = []
        """Those that are open."""

    async def stream(self, request: WorkerRequest, timeout_s: float) -> CompletionStream:
        call = Call(request, {t.sample_index: t for t in request.tasks})
        self.requests.append(request)
        self.timeouts_s.append(timeout_s)
        self.calls.append(call)
        try:
            while (event := await call.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.calls.remove(call)

    @property
    def writing(self) -> list[tuple[Call, int]]:
        """Samples that have not ended."""
        return [(call, index) for call in self.calls for index in call.missing]

    def end(self, call: Call, index: int, num_tokens: int = 3, finish_reason: FinishReason = "stop") -> None:
        """Send one sample; the last of a request ends its stream."""
        del call.missing[index]
        call.events.put_nowait((index, completion(num_tokens, finish_reason)))
        if not call.missing:
            call.events.put_nowait(None)

    def end_all(self, num_tokens: int = 3, finish_reason: FinishReason = "stop") -> None:
        for call, index in self.writing:
            self.end(call, index, num_tokens, finish_reason)

    def sent(self) -> list[list[tuple[int, int, int]]]:
        """Return (sample index, attempt, tokens of its prior) of every request so far."""
        return [
            [(t.sample_index, t.attempt, 0 if t.prior is None else t.prior.num_tokens) for t in request.tasks]
            for request in self.requests
        ]


def make_pool(*names: str, timeout_s: float = 5.0, **settings: Any) -> tuple[RolloutPool, dict[str, HandEngine]]:
    """Return a pool of engines with these names."""
    pool = RolloutPool(timeout_s, DispatchSettings(**settings))
    engines = {name: HandEngine() for name in names}
    for name, engine in engines.items():
        pool.add_worker(name, engine.stream)
    return pool, engines


def ask(pool: RolloutPool, num_samples: int = 1, seed: int = 0, **request: Any) -> "asyncio.Task[list[Completion]]":
    """Ask for a group; the task ends with its completions by sample index."""
    return asyncio.create_task(collect(pool.stream(RolloutRequest([1, 2], num_samples, seed, **request))))


async def settle(rounds: int = 12) -> None:
    """Let everything happen that can happen now."""
    for _ in range(rounds):
        await asyncio.sleep(0)
