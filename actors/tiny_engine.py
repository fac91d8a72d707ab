"""A bigram language model in one matrix: it samples, takes weights, pauses and resumes texts like a real engine."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from actors.engine import EngineSettings
from actors.load import EngineLoad
from actors.repetition_stop import ends_in_loop
from actors.streams import CompletionStream, PieceStream, as_it_is_written, as_they_end
from actors.tasks import SampleTask, WorkerRequest
from actors.transcript import join_spans
from lwz_ray.records import Completion, FinishReason, VersionSpan
from lwz_ray.staging import read_staged


@dataclass(slots=True, eq=False)
class _Draft:
    """What one sample has written so far."""

    num_prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[VersionSpan] = field(default_factory=list)

    def add(self, token: int, logprob: float, policy_version: int) -> None:
        n = len(self.tokens)
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.spans and self.spans[-1].policy_version == policy_version:
            self.spans[-1] = VersionSpan(self.spans[-1].start, n + 1, policy_version)
        else:
            self.spans.append(VersionSpan(n, n + 1, policy_version))

    def completion(self, reason: FinishReason, stop: str, policy_version: int) -> Completion:
        text = "".join(_word(t) for t in self.tokens if t)
        return Completion(
            text=text + (stop if reason == "stop" else ""),
            token_ids=np.asarray(self.tokens, dtype=np.int32),
            rollout_logprobs=np.asarray(self.logprobs, dtype=np.float32),
            finish_reason=reason,
            version_spans=join_spans(self.spans or [VersionSpan(0, 0, policy_version)], len(self.tokens)),
        )


def _word(token: int) -> str:
    return f" w{token}"


class TinyEngine:
    """p(next | last) = softmax(logits[last] / temperature). Token 0 ends a text; token i prints as ` w<i>`.

    Writes `max_num_seqs` samples at once; more wait. Its cache is the room for as many of `max_length_tokens`, so it
    never preempts one.
    """

    TENSOR = "logits"

    def __init__(self, settings: EngineSettings, logits: torch.Tensor) -> None:
        """logits: [vocabulary, vocabulary]."""
        self.settings = settings
        self.policy_version = 0
        self._logits = logits.clone()
        self._running = asyncio.Event()
        self._admitting = asyncio.Event()
        """Clear while paused, and already while a pause waits for what is being written."""
        self._slots = asyncio.Semaphore(settings.max_num_seqs)
        self._open: set[asyncio.Timeout] = set()
        """Of every sample, waiting or written; bringing one forward ends its sample."""
        self._drafts: set[_Draft] = set()
        """Being written."""
        self._idle = asyncio.Event()
        """Set while there are no drafts."""
        self._idle.set()
        self._num_generated_tokens = 0

    async def start(self) -> None:
        await self.resume()

    async def stream(self, request: WorkerRequest, request_id: str) -> CompletionStream:
        """Sample token by token, giving way to others in between, so that updates can land inside a text."""
        works = {task.sample_index: self._one(request, task) for task in request.tasks}
        async with contextlib.aclosing(as_they_end(works)) as ended:
            async for item in ended:
                yield item

    async def pieces(self, request: WorkerRequest, request_id: str) -> PieceStream:
        """Yield the text word by word, then the completion."""
        (task,) = request.tasks
        async with contextlib.aclosing(as_it_is_written(lambda tell: self._one(request, task, tell))) as pieces:
            async for piece in pieces:
                yield piece

    async def _one(
        self, request: WorkerRequest, task: SampleTask, tell: Callable[[str], None] = lambda piece: None
    ) -> Completion:
        if request.json_schema is not None or request.top_p is not None:
            raise ValueError("the tiny engine has no structured output and no top_p")
        limit = self.settings.max_tokens if request.max_tokens is None else request.max_tokens
        draft, prior = _Draft(len(request.prompt_token_ids)), task.prior
        if prior is not None and prior.num_tokens:
            if prior.num_tokens >= limit:
                return replace(prior, finish_reason="length")
            draft.tokens, draft.logprobs = prior.token_ids.tolist(), prior.rollout_logprobs.tolist()
            draft.spans = list(prior.version_spans)
        reason: FinishReason = "abort"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(task.remaining_s) as end:
                self._open.add(end)
                try:
                    async with self._slots:
                        await self._admitting.wait()
                        self._drafts.add(draft)
                        self._idle.clear()
                        reason = await self._write(draft, request, task.seed, limit, tell)
                finally:
                    self._open.discard(end)
                    self._drafts.discard(draft)
                    if not self._drafts:
                        self._idle.set()
        return draft.completion(reason, self.settings.stop, self.policy_version)

    async def _write(
        self, draft: _Draft, request: WorkerRequest, seed: int, limit: int, tell: Callable[[str], None]
    ) -> FinishReason:
        heat = self.settings.temperature if request.temperature is None else request.temperature
        rng, rule = np.random.default_rng(seed), self.settings.repetition_stop
        while len(draft.tokens) < limit:
            await self._running.wait()
            last = draft.tokens[-1] if draft.tokens else int(request.prompt_token_ids[-1])
            row = torch.log_softmax(self._logits[last].double() / heat, dim=0).numpy()
            probabilities = np.exp(row)
            token = int(rng.choice(len(row), p=probabilities / probabilities.sum()))
            draft.add(token, float(row[token]), self.policy_version)
            tell(_word(token) if token else self.settings.stop)
            self._num_generated_tokens += 1
            if token == 0:
                return "stop"
            if rule is not None and len(draft.tokens) < limit and ends_in_loop(draft.tokens, rule):
                return "repetition"
            await asyncio.sleep(0)
        return "length"

    async def pause(self) -> None:
        """Write nothing more; with `abort` everything ends with what it has, with `wait` what is written ends first."""
        mode = self.settings.update_mode
        self._admitting.clear()
        if mode != "wait":
            self._running.clear()
        if mode == "abort":
            await self.interrupt()
        if mode != "keep":
            await self._idle.wait()
        self._running.clear()

    async def resume(self) -> None:
        self._running.set()
        self._admitting.set()

    async def interrupt(self) -> None:
        now = asyncio.get_running_loop().time()
        for end in self._open:
            if not end.expired():
                end.reschedule(now)

    async def load_weights(self, policy_version: int, header_paths: Sequence[str]) -> None:
        """Load the one tensor; raises KeyError where it is missing."""
        loaded = {name: tensor.clone() for path in header_paths for name, tensor in read_staged(path)}
        self._logits = loaded[self.TENSOR].float()
        self.policy_version = policy_version

    async def load(self) -> EngineLoad:
        cache_tokens = self.settings.max_num_seqs * self.settings.max_length_tokens
        held = sum(draft.num_prompt_tokens + len(draft.tokens) for draft in self._drafts)
        return EngineLoad(
            policy_version=self.policy_version,
            num_running=len(self._drafts),
            num_waiting=len(self._open) - len(self._drafts),
            cache_usage=min(1.0, held / cache_tokens),  # a text longer than max_length_tokens is not refused
            cache_tokens=cache_tokens,
            num_preemptions=0,
            num_generated_tokens=self._num_generated_tokens,
        )

    async def close(self) -> None:
        self._running.clear()
