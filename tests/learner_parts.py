"""Learner ranks on the tiny random model, and batches to train it on."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from learners.fsdp import FsdpBackend
from learners.rendezvous import Rendezvous
from learners.settings import LearnerSettings
from learners.trainer import Trainer
from lwz_ray.packing import split_over_ranks
from lwz_ray.records import TrainSample
from lwz_ray.staging import read_staged
from lwz_ray.token_weights import token_weights_of
from tests.algorithms import algorithm

TIMEOUT_S = 200.0
_open: list[Rendezvous] = []


def settings(model: Path, **changes: Any) -> LearnerSettings:
    """Return settings of a float32 learner on CPU."""
    plain: dict[str, Any] = {
        "model_path": str(model),
        "trust_remote_code": False,
        "device": "cpu",
        "dtype": "float32",
        "publish_dtype": "float32",
        "threads": 1,
        "temperature": 0.8,
        "logprob_chunk_tokens": 16,
        "activation_checkpointing": True,
        "reshard_after_forward": True,
        "lr": 1e-2,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "bucket_bytes": 2**20,
        "staging_candidates": ("/dev/shm", "/tmp"),
        "staging_bytes": 2**25,
        "timeout_s": 60.0,
        "seed": 0,
        "algorithm": algorithm(old_logprobs="rollout", correction="none"),
    }
    return LearnerSettings(**plain | changes)


def batch(lengths: tuple[int, ...] = (5, 17, 2, 30, 11), seed: int = 1, **changes: Any) -> list[TrainSample]:
    """Return samples of these completion lengths; runs of two share a prompt, advantages alternate in sign.

    changes: fields of TrainSample, equal in all, or `advantage`, one number for every trained token.
    """
    advantage = changes.pop("advantage", None)
    rng = np.random.default_rng(seed)
    weights = token_weights_of(lengths, "sequence_mean", 1)
    out = []
    for i, length in enumerate(lengths):
        prompt = 1000 + 10 * (i // 2) + np.arange(4 + i // 2)
        ids = np.concatenate([prompt, rng.integers(0, 49152, length)]).astype(np.int32)
        mask = np.arange(len(ids)) >= len(prompt)
        # A random model gives every token about ln(1 / 49152) = -10.8 nats.
        logprobs = np.where(mask, -10.8 + 0.1 * rng.standard_normal(len(ids)), 0.0).astype(np.float32)
        given = (-1.0) ** i * (1.0 + i / 4) if advantage is None else advantage
        plain = {
            "advantages": np.where(mask, given, 0.0).astype(np.float32),
            "token_weight": weights[i],
            "loss_mask": mask,
        }
        out.append(TrainSample(ids, len(prompt), rollout_logprobs=logprobs, **plain | changes))
    return out


def meeting_address() -> str:
    """Return where one group can meet: a store that this process keeps open until it ends."""
    _open.append(Rendezvous("127.0.0.1", TIMEOUT_S))
    return _open[-1].address


def run_ranks(target: Callable[..., None], world_size: int, arguments: tuple[int, str, str, str]) -> None:
    """Run target(rank, *arguments) in a process for every rank; an error of one ends the others and is raised."""
    # The ranks are forked from one clean process that has imported what takes long.
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch", "transformers.models.llama.modeling_llama"]
    )
    ranks: Any = start_processes(target, arguments, world_size, join=False, start_method="forkserver")
    end = time.monotonic() + TIMEOUT_S
    while not ranks.join(timeout=1.0):  # returns when one has ended
        if time.monotonic() > end:
            for process in ranks.processes:
                process.kill()
            pytest.fail(f"{world_size} ranks did not end in {TIMEOUT_S:g} s")


def alone_and_in_two(
    target: Callable[[int, int, str, str, str], None], model: Path, folders: pytest.TempPathFactory
) -> dict[str, Any]:
    """Run target on one rank and on two; return what each rank wrote (`of_1`, `of_2`), and the export of the two."""
    out: dict[str, Any] = {}
    for world_size in (1, 2):
        folder = folders.mktemp(f"world_{world_size}")
        arguments = (world_size, meeting_address(), str(model), str(folder))
        if world_size == 1:
            target(0, *arguments)
        else:
            run_ranks(target, world_size, arguments)
        out[f"of_{world_size}"] = [torch.load(folder / f"rank_{r}.pt", weights_only=False) for r in range(world_size)]
        out["export"] = folder / "export"
    return out


def train_stage_export(rank: int, world_size: int, address: str, model: str, folder: str) -> None:
    """Take two steps on one rank of a group, stage, export and save; write what was seen to `folder`/rank_N.pt.

    The second batch is one sample: of two ranks one has nothing to train.
    """
    wanted = settings(Path(model))
    trainer = Trainer(wanted, FsdpBackend(wanted, rank, world_size, address))
    results = []
    for lengths in ((5, 17, 2, 30, 11), (9,)):
        plan = split_over_ranks(batch(lengths), 64, world_size)
        results.append(trainer.train([plan[rank]]))
    paths = trainer.publication.stage_weights(policy_version=2).header_paths
    staged = {name: tensor.clone() for path in paths for name, tensor in read_staged(path)}
    parameters = dict(trainer.backend.stream_weights(torch.float32))
    export, checkpoint = Path(folder, "export"), Path(folder, "checkpoint")
    for path in (export, checkpoint):
        path.mkdir(exist_ok=True)
    trainer.export(str(export))
    trainer.save(str(checkpoint))
    trainer.finish_save()
    trainer.load(str(checkpoint))
    seen = {"results": results, "num_buckets": len(paths), "staged": staged, "parameters": parameters}
    torch.save(seen, Path(folder, f"rank_{rank}.pt"))
    trainer.close()
