"""A bigram language model in one matrix: it samples, takes weights and pauses like a real engine."""

import asyncio
import contextlib
from collections.abc import Sequence

import numpy as np
import torch

from actors.engine import EngineSettings
from actors.repetition_stop import ends_in_loop
from actors.streams import CompletionStream, as_they_end
from lwz_ray.records import Completion, FinishReason, RolloutRequest, VersionSpan
from lwz_ray.staging import read_staged


class TinyEngine:
    """p(next | last) = softmax(logits[last] / temperature). Token 0 ends a text; token i prints as ` w<i>`."""

    TENSOR = "logits"

    def __init__(self, settings: EngineSettings, logits: torch.Tensor) -> None:
        """logits: [vocabulary, vocabulary]."""
        self.settings = settings
        self.policy_version = 0
        self._logits = logits.clone()
        self._running = asyncio.Event()

    async def start(self) -> None:
        self._running.set()

    async def stream(self, request: RolloutRequest, request_id: str) -> CompletionStream:
        """Sample token by token, giving way to others in between, so that updates can land inside a text."""
        last = int(request.prompt_token_ids[-1])
        heat = self.settings.temperature if request.temperature is None else request.temperature
        limit = self.settings.max_tokens if request.max_tokens is None else request.max_tokens
        seeds = [np.random.default_rng([request.seed, i]) for i in range(request.num_samples)]
        works = [self._one(last, rng, heat, limit) for rng in seeds]
        async with contextlib.aclosing(as_they_end(works)) as ended:
            async for item in ended:
                yield item

    async def _one(self, last: int, rng: np.random.Generator, temperature: float, max_tokens: int) -> Completion:
        tokens: list[int] = []
        logprobs: list[float] = []
        versions: list[int] = []
        rule = self.settings.repetition_stop
        reason: FinishReason = "length"
        while len(tokens) < max_tokens:
            await self._running.wait()
            row = torch.log_softmax(self._logits[last].double() / temperature, dim=0).numpy()
            probabilities = np.exp(row)
            last = int(rng.choice(len(row), p=probabilities / probabilities.sum()))
            tokens.append(last)
            logprobs.append(float(row[last]))
            versions.append(self.policy_version)
            if last == 0:
                reason = "stop"
                break
            if rule is not None and len(tokens) < max_tokens and ends_in_loop(tokens, rule):
                reason = "repetition"
                break
            await asyncio.sleep(0)
        text = "".join(f" w{t}" for t in tokens if t)
        return Completion(
            text=text + (self.settings.stop if reason == "stop" else ""),
            token_ids=np.asarray(tokens, dtype=np.int32),
            rollout_logprobs=np.asarray(logprobs, dtype=np.float32),
            finish_reason=reason,
            version_spans=_spans(versions),
        )

    async def pause(self) -> None:
        self._running.clear()

    async def resume(self) -> None:
        self._running.set()

    async def load_weights(self, policy_version: int, header_paths: Sequence[str]) -> None:
        """Load the one tensor; raises KeyError where it is missing."""
        loaded = {name: tensor.clone() for path in header_paths for name, tensor in read_staged(path)}
        self._logits = loaded[self.TENSOR].float()
        self.policy_version = policy_version

    async def close(self) -> None:
        self._running.clear()


def _spans(versions: list[int]) -> tuple[VersionSpan, ...]:
    spans: list[VersionSpan] = []
    for i, version in enumerate(versions):
        if spans and spans[-1].policy_version == version:
            spans[-1] = VersionSpan(spans[-1].start, i + 1, version)
        else:
            spans.append(VersionSpan(i, i + 1, version))
    return tuple(spans)
