"""Samples with values and returns, and critic ranks on the tiny models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learners.deepspeed import DeepSpeedBackend
from learners.fsdp import FsdpBackend
from learners.trainer import Trainer
from lwz_ray.packing import split_over_ranks
from lwz_ray.records import TokenFacts, TrainSample
from tests.learner_parts import batch, meeting_address, settings

BUDGET = 40
WAYS: dict[str, dict[str, Any]] = {
    "fsdp": {},
    "fsdp, both ranks share each row": {"sequence_parallel": 2},
    "deepspeed": {"backend": "deepspeed", "zero_stage": 3},
}
KEYS = ("loss", "grad_norm", "clip_fraction", "value", "return", "explained_variance", "tokens")


def valued(lengths: tuple[int, ...] = (5, 17, 2, 30, 11), seed: int = 1, value_std: float = 1.0) -> list[TrainSample]:
    """Return samples whose old values and returns are random numbers."""
    rng = np.random.default_rng(seed)
    out = []
    for sample in batch(lengths, seed):
        values, returns = (np.where(sample.loss_mask, rng.standard_normal(sample.num_tokens), 0.0) for _ in range(2))
        facts = TokenFacts(values=(value_std * values).astype(np.float32))
        out.append(replace(sample, facts=facts, returns=returns.astype(np.float32)))
    return out


def constant(sample: TrainSample, returned: float, value: float = 0.0) -> TrainSample:
    """Return a sample with one return and one old value for all its trained tokens."""
    returns, values = (np.where(sample.loss_mask, x, 0.0).astype(np.float32) for x in (returned, value))
    return replace(sample, facts=TokenFacts(values=values), returns=returns)


def critic(model: Path, rank: int = 0, world_size: int = 1, address: str | None = None, **changes: Any) -> Trainer:
    """Return one rank of a float32 critic."""
    plain: dict[str, Any] = {"objective": "critic", "value_clip": 0.2, "activation_checkpointing": False}
    wanted = settings(model, **plain | changes)
    backend = DeepSpeedBackend if wanted.backend == "deepspeed" else FsdpBackend
    return Trainer(wanted, backend(wanted, rank, world_size, address or meeting_address()))


def take_steps(learner: Trainer) -> dict[str, Any]:
    """Take two steps; the second batch is one sample: of two ranks one has nothing to train."""
    backend, sharing = learner.backend, learner.settings.sequence_parallel
    results = []
    for lengths in ((5, 17, 2, 30, 11), (9,)):
        plan = split_over_ranks(valued(lengths), BUDGET, backend.world_size // sharing)
        results.append(learner.train([plan[backend.rank // sharing]]))
    return {"results": results, "parameters": dict(backend.stream_weights(torch.float32))}


def train_each_way(rank: int, world_size: int, addresses: str, model: str, folder: str) -> None:
    """Take the steps on one rank of each of `WAYS`; write what was seen to `folder`/rank_N.pt.

    addresses: one of each, with commas between them.
    """
    seen = {}
    for (way, changes), address in zip(WAYS.items(), addresses.split(","), strict=True):
        learner = critic(Path(model), rank, world_size, address, **changes)
        seen[way] = take_steps(learner)
        learner.close()
    torch.save(seen, Path(folder, f"rank_{rank}.pt"))
