"""An engine that schedules as vLLM does and takes as long as was measured, on an event loop whose clock only jumps."""

import asyncio
import selectors
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from actors.load import EngineLoad
from actors.streams import CompletionStream
from actors.tasks import WorkerRequest
from lwz_ray.records import Completion, VersionSpan

MAX_PREFILL_TOKENS = 4096
"""Of one engine step."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of one engine step: fixed + per_sequence * decoded sequences + per_prefill_token * prefilled tokens."""

    fixed: float
    per_sequence: float
    per_prefill_token: float

    def step_s(self, num_decoded: int, num_prefilled: int) -> float:
        return self.fixed + self.per_sequence * num_decoded + self.per_prefill_token * num_prefilled

    @classmethod
    def fitted(cls, decodes: Sequence[tuple[int, float]], prefills: Sequence[tuple[int, float]]) -> "Speed":
        """Fit measured (sequences, seconds a step) and (prompt tokens, seconds until the first token)."""
        sequences, seconds = np.array(decodes).T
        slope, fixed = np.polyfit(sequences, seconds, 1)
        rows = np.array(prefills)
        per_token = float(np.median((rows[:, 1] - max(fixed, 0.0)) / rows[:, 0]))
        return cls(max(float(fixed), 0.0), float(slope), per_token)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(slots=True, eq=False)
class _Sequence:
    index: int
    num_prompt: int
    length: int
    done: asyncio.Queue[tuple[int, Completion]]
    written: int = 0
    blocks: int = 0
    fresh: bool = True
    """To be prefilled in this step."""


@dataclass(eq=False)
class SimulatedEngine:
    """First come, first served; the newest sequence is preempted when no block is free, and computed anew later."""

    speed: Speed
    lengths: Mapping[tuple[int, ...], tuple[int, ...]]
    cache_tokens: int
    block_tokens: int
    max_num_seqs: int
    _waiting: "deque[_Sequence]" = field(default_factory=deque)
    _running: list[_Sequence] = field(default_factory=list)
    _free: int = field(init=False)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    num_preemptions: int = 0
    num_generated: int = 0
    num_computed_again: int = 0
    """Tokens prefilled a second time after a preemption."""

    def __post_init__(self) -> None:
        self._free = self.cache_tokens // self.block_tokens

    async def stream(self, request: WorkerRequest, timeout_s: float) -> CompletionStream:
        done: asyncio.Queue[tuple[int, Completion]] = asyncio.Queue()
        lengths = self.lengths[request.prompt_token_ids]
        for task in request.tasks:
            length = lengths[task.sample_index]
            self._waiting.append(_Sequence(task.sample_index, len(request.prompt_token_ids), length, done))
        self._arrived.set()
        for _ in request.tasks:
            yield await done.get()

    async def load(self) -> EngineLoad:
        num_blocks = self.cache_tokens // self.block_tokens
        return EngineLoad(
            0, len(self._running), len(self._waiting), 1 - self._free / num_blocks, num_blocks * self.block_tokens,
            self.num_preemptions, self.num_generated,
        )  # fmt: skip

    async def run(self) -> None:
        """Step for ever."""
        while True:
            if not (self._running or self._waiting):
                self._arrived.clear()
                await self._arrived.wait()
            num_prefilled = self._schedule()
            num_decoded = sum(not s.fresh for s in self._running)
            await asyncio.sleep(self.speed.step_s(num_decoded, num_prefilled))
            for sequence in list(self._running):
                self._token(sequence)

    def _schedule(self) -> int:
        """Give every running sequence room for its next token, then admit what fits; return tokens to prefill."""
        preempted = False
        for sequence in list(self._running):
            while sequence in self._running and not self._room(sequence):
                self._preempt(self._running[-1])
                preempted = True
        num_prefilled = 0
        while self._waiting and not preempted and len(self._running) < self.max_num_seqs:
            sequence = self._waiting[0]
            tokens = sequence.num_prompt + sequence.written
            if num_prefilled + tokens > MAX_PREFILL_TOKENS or not self._room(sequence):
                break
            self._running.append(self._waiting.popleft())
            sequence.fresh = True
            num_prefilled += tokens
            self.num_computed_again += tokens if sequence.written else 0
        return num_prefilled

    def _room(self, sequence: _Sequence) -> bool:
        missing = -(-(sequence.num_prompt + sequence.written + 1) // self.block_tokens) - sequence.blocks
        if missing > self._free:
            return False
        self._free -= missing
        sequence.blocks += missing
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._free += sequence.blocks
        sequence.blocks = 0
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _token(self, sequence: _Sequence) -> None:
        sequence.fresh = False
        sequence.written += 1
        self.num_generated += 1
        if sequence.written < sequence.length:
            return
        self._running.remove(sequence)
        self._free += sequence.blocks
        tokens = np.ones(sequence.written, dtype=np.int32)
        spans = (VersionSpan(0, sequence.written, 0),)
        text = Completion("", tokens, -tokens.astype(np.float32), "length", spans)
        sequence.done.put_nowait((sequence.index, text))


class _Selector(selectors.SelectSelector):
    """Waits for nothing: the time until the next timer passes at once."""

    clock: "JumpingLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("simulation: everything waits and no timer is set")
        self.clock.passed_s += max(timeout, 0.0)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while nothing is left to do."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.clock = self
        self.passed_s = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.passed_s
