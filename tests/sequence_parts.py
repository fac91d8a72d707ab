"""Learner ranks that share rows, and what they saw."""

from pathlib import Path
from typing import Any

import torch

from learners.backend import Backend
from learners.policy_objective import PolicyObjective
from learners.settings import LearnerSettings
from learners.trainer import Trainer
from lwz_ray.packing import split_over_ranks
from lwz_ray.records import TrainSample
from tests.algorithms import algorithm
from tests.learner_parts import batch, settings
from tests.padded_reference import annotated
from tests.small_model import in_small_vocabulary

BUDGET = 64
LENGTHS = (5, 17, 2, 30, 11, 1, 40)
"""Three rows of 47, 44 and 42 tokens on one rank; two rows of 47 and 25, and of 35 and 26, on two."""


def shared_rows_settings(model: str, **changes: Any) -> LearnerSettings:
    """Return settings whose loss uses all that a row gives: logprobs, entropies, old and reference logprobs."""
    wanted = algorithm(entropy_coefficient=0.01, kl_coefficient=0.1, kl_in="loss", correction="sequence_truncated")
    return settings(Path(model), algorithm=wanted, max_grad_norm=1e9, **changes)


def samples(lengths: tuple[int, ...] = LENGTHS) -> list[TrainSample]:
    return annotated(in_small_vocabulary(batch(lengths)))


def loss_and_gradients(backend: Backend, wanted: LearnerSettings, lengths: tuple[int, ...]) -> dict[str, Any]:
    """Return loss and gradient norm over all ranks, whole gradients where the backend shows them, first logprobs."""
    shared = wanted.sequence_parallel
    objective = PolicyObjective(wanted.algorithm, wanted.temperature)  # type: ignore[arg-type]
    rows = split_over_ranks(samples(lengths), BUDGET, backend.world_size // shared)[backend.rank // shared]
    with torch.no_grad():
        logprobs, entropies = objective.logprobs(backend.model, rows[0], backend.device)
    total = 0.0
    for i, row in enumerate(rows):
        loss, _ = objective.loss(backend.model, row, backend.device)
        # Every rank of the group has the whole row's loss: together they must count once.
        backend.accumulate(loss / shared, last=i == len(rows) - 1)
        total += float(loss.detach()) / shared
    gradients = {}
    for name, parameter in backend.model.named_parameters():
        grad = parameter.grad
        if grad is not None:
            gradients[name] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).clone()
    (loss,) = backend.sum_over_ranks([total])
    return {
        "loss": loss, "norm": backend.clip_gradients(1e9), "gradients": gradients,
        "num_tokens": [r.num_tokens for r in rows], "logprobs": logprobs, "entropies": entropies,
    }  # fmt: skip


def share_rows(rank: int, world_size: int, addresses: str, models: str, folder: str) -> None:
    """Run every case `name=shared ranks:model folder` of `models` on FSDP2; write `folder`/rank_N.pt, by case."""
    from learners.fsdp import FsdpBackend

    seen = {}
    for address, case in zip(addresses.split(","), models.split(","), strict=True):
        name, shared, model = case.split("=")[0], *case.split("=")[1].split(":", 1)
        wanted = shared_rows_settings(model, sequence_parallel=int(shared))
        backend = FsdpBackend(wanted, rank, world_size, address)
        seen[name] = [loss_and_gradients(backend, wanted, LENGTHS)]
        backend.discard()
        seen[name].append(loss_and_gradients(backend, wanted, (9,)))
        backend.discard()
        rows = split_over_ranks(samples(), BUDGET, world_size // int(shared))[rank // int(shared)]
        seen[name].append(Trainer(wanted, backend).train([rows]).metrics)
        backend.close()
    torch.save(seen, Path(folder, f"rank_{rank}.pt"))


def share_rows_with_zero3(rank: int, world_size: int, address: str, model: str, folder: str) -> None:
    """Run one case on ZeRO-3: every rank shares every row."""
    from learners.deepspeed import DeepSpeedBackend

    wanted = shared_rows_settings(model, sequence_parallel=world_size, backend="deepspeed", zero_stage=3)
    backend = DeepSpeedBackend(wanted, rank, world_size, address)
    torch.save(loss_and_gradients(backend, wanted, LENGTHS), Path(folder, f"rank_{rank}.pt"))
    backend.close()
