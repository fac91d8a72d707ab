"""Preference pairs of random tokens, and a reward-model learner rank on the tiny random model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learners.fsdp import FsdpBackend
from learners.trainer import Trainer
from lwz_ray.preferences import EncodedPair, PairBatch, split_pairs_over_ranks
from tests.learner_parts import meeting_address, settings


def pairs(lengths: Sequence[tuple[int, int]] = ((5, 9), (5, 3), (12, 7), (4, 4), (8, 1)), seed: int = 1) -> Any:
    """Return a pair per (chosen, rejected) length; neighbours of two share head and chosen, weights are 1 / N."""
    rng = np.random.default_rng(seed)
    out: list[EncodedPair] = []
    for i, (chosen, rejected) in enumerate(lengths):
        own = rng.integers(1000, 49152, chosen).astype(np.int32)
        if i % 2 and chosen == lengths[i - 1][0]:
            own = out[-1].chosen
        other = rng.integers(1000, 49152, rejected).astype(np.int32)
        head = np.arange(1000 + 10 * (i // 2), 1004 + 11 * (i // 2), dtype=np.int32)
        out.append(EncodedPair(head, own, other, margin=0.1 * i, weight=1 / len(lengths)))
    return out


def rows(items: Sequence[EncodedPair], budget: int = 64) -> list[PairBatch]:
    """Return the microbatches of one rank."""
    return split_pairs_over_ranks(items, budget, 1)[0]


def trainer(model: Path, rank: int = 0, world_size: int = 1, address: str | None = None, **changes: Any) -> Trainer:
    """Return one rank of a float32 reward-model learner."""
    plain: dict[str, Any] = {"objective": "preference", "center_coefficient": 0.01, "activation_checkpointing": False}
    wanted = settings(model, **plain | changes)
    return Trainer(wanted, FsdpBackend(wanted, rank, world_size, address or meeting_address()))


def train_score_export(rank: int, world_size: int, address: str, model: str, folder: str) -> None:
    """Take two steps on one rank of a group, score and export; write what was seen to `folder`/rank_N.pt.

    The second batch is one pair: of two ranks one has nothing to train.
    """
    learner = trainer(Path(model), rank, world_size, address)
    results = []
    for items in (pairs(), pairs(((6, 9),), seed=2)):
        results.append(learner.train([split_pairs_over_ranks(items, 40, world_size)[rank]]))
    plan = split_pairs_over_ranks(pairs(), 40, world_size)
    scores = learner.predict(plan[rank])
    parameters = dict(learner.backend.stream_weights(torch.float32))
    export = Path(folder, "export")
    export.mkdir(exist_ok=True)
    learner.export(str(export))
    seen = {"results": results, "scores": scores, "plan": plan[rank], "parameters": parameters}
    torch.save(seen, Path(folder, f"rank_{rank}.pt"))
    learner.close()
