"""An engine behind a rollout worker, and sets of weights for it: what the contract of engines is tested with."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from actors.tiny_engine import TinyEngine
from actors.worker import RolloutWorker
from lwz_ray.records import Completion
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import pack_buckets
from tests.rollout_parts import collect, samples_of

TINY_LOGITS = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
TIMEOUT_S = 60.0
ENDLESS = 10


@dataclass
class Case:
    """A worker, and sets of weights for it: 0 is the one it starts with, any other number is another set.

    From ENDLESS on, texts do not end by themselves.
    """

    worker: RolloutWorker
    base: dict[str, torch.Tensor]
    prompt: list[int]
    staging: StagingFolder
    head_start_s: float
    """After this a text of `long_tokens` has begun and is not at its end."""
    long_tokens: int

    @property
    def version(self) -> int:
        return self.worker.engine.policy_version

    async def generate(
        self, num_samples: int = 4, seed: int = 1, timeout_s: float = TIMEOUT_S, **asked: Any
    ) -> list[Completion]:
        return await collect(self.worker.stream(samples_of(self.prompt, num_samples, seed, **asked), timeout_s))

    def stage(self, number: int) -> list[str]:
        """Stage a set of weights as the next version."""
        self.staging.clear()
        generator = torch.Generator().manual_seed(number)
        tensors = dict(self.base)
        if number:
            for name, tensor in tensors.items():
                noise = torch.randn(tensor.shape, generator=generator)
                tensors[name] = (tensor.float() + noise * (0.5 * tensor.float().std() + 0.01)).to(tensor.dtype)
        if number >= ENDLESS and TinyEngine.TENSOR in tensors:
            tensors[TinyEngine.TENSOR][:, 0] = -30.0
        buckets = pack_buckets(tensors.items(), self.version + 1, 2**20)
        return [self.staging.write(b) for b in buckets]

    async def update(self, number: int) -> None:
        await self.worker.update(self.version + 1, self.stage(number), TIMEOUT_S)


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [c.token_ids.tolist() for c in completions]


def set_engine(case: Case, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    engine: Any = case.worker.engine
    monkeypatch.setattr(engine, "settings", replace(engine.settings, **changes))
