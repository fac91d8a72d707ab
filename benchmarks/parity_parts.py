"""The same optimizer steps on every backend: what each saw, where its weights went, and how far two runs are apart.

jobs = [job(placement, settings, batches) for placement in PLACEMENTS]
tracks = run_jobs(jobs)
print(markdown([(j.placement.name, difference(t, tracks[0])) for j, t in zip(jobs, tracks)]))
"""

import math
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from learners.backend import Backend
from learners.rendezvous import Rendezvous
from learners.settings import LearnerSettings
from learners.trainer import Trainer
from lwz_ray.errors import WaitTimeoutError
from lwz_ray.packing import Microbatch, build_microbatch, split_over_ranks
from lwz_ray.records import TrainSample

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Placement:
    """A backend on a number of ranks. changes: of LearnerSettings."""

    name: str
    world_size: int
    changes: dict[str, Any] = field(default_factory=dict)


PLACEMENTS = (
    Placement("1 process", 1),
    Placement("FSDP2, 2 ranks", 2),
    Placement("ZeRO-1, 2 ranks", 2, {"backend": "deepspeed", "zero_stage": 1}),
    Placement("ZeRO-2, 2 ranks", 2, {"backend": "deepspeed", "zero_stage": 2}),
    Placement("ZeRO-3, 2 ranks", 2, {"backend": "deepspeed", "zero_stage": 3}),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One optimizer step a batch, on one placement."""

    placement: Placement
    settings: LearnerSettings
    batches: list[list[TrainSample]]
    budget: int | None
    """Tokens of a packed row; None: every sample has a row of its own."""
    gradient_scale: float = 1.0
    """Other than 1 plants a fault: what backward sees is scaled, what is reported is not."""


def job(
    placement: Placement, settings: LearnerSettings, batches: list[list[TrainSample]], budget: int | None = 64
) -> Job:
    """Return a job of these settings on this placement."""
    return Job(placement, replace(settings, **placement.changes), batches, budget)


@dataclass(frozen=True, slots=True)
class Track:
    """What one run saw: losses and gradient norms step by step, and the whole change of each weight, float32."""

    losses: list[float]
    norms: list[float]
    update: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a run is from another, relative to the other."""

    loss: float
    norm: float
    """Largest of all steps."""
    update: float
    """|Da - Db| / |Db| over all weights, in the 2-norm."""


def run_jobs(jobs: Sequence[Job], timeout_s: float = TIMEOUT_S) -> list[Track]:
    """Return each job's track; jobs of equal world size share processes, those of one rank run in this one.

    Raises WaitTimeoutError, or the error of a rank.
    """
    tracks: dict[int, Track] = {}
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        for world_size in sorted({job.placement.world_size for job in jobs}):
            numbers = [i for i, job in enumerate(jobs) if job.placement.world_size == world_size]
            meetings = [Rendezvous("127.0.0.1", timeout_s) for _ in numbers]
            chosen = [(i, jobs[i], meeting.address) for i, meeting in zip(numbers, meetings, strict=True)]
            if world_size == 1:
                _run_rank(0, chosen, folder)
            else:
                _spawn(world_size, chosen, folder, timeout_s)
            for i in numbers:
                tracks[i] = torch.load(Path(folder, f"{i}.pt"), weights_only=False)
    return [tracks[i] for i in range(len(jobs))]


def difference(track: Track, other: Track) -> Difference:
    """Compare two tracks of as many steps and the same weights."""
    if list(track.update) != list(other.update):
        raise ValueError("the two runs have different weights")
    apart = math.sqrt(
        sum(float((d.double() - other.update[n].double()).square().sum()) for n, d in track.update.items())
    )
    size = math.sqrt(sum(float(d.double().square().sum()) for d in other.update.values()))
    return Difference(_relative(track.losses, other.losses), _relative(track.norms, other.norms), apart / size)


def _relative(values: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(values, others, strict=True))


def markdown(rows: Sequence[tuple[str, Difference]], first: str = "backend") -> str:
    """Return the rows as a table."""
    lines = [f"| {first} | loss | gradient norm | update |", "| :--- | ---: | ---: | ---: |"]
    lines += [f"| {name} | {d.loss:.1e} | {d.norm:.1e} | {d.update:.1e} |" for name, d in rows]
    return "\n".join(lines)


def open_backend(settings: LearnerSettings, rank: int, world_size: int, address: str) -> Backend:
    """Return this rank's backend, the one that the settings name."""
    if settings.backend == "deepspeed":
        from learners.deepspeed import DeepSpeedBackend

        return DeepSpeedBackend(settings, rank, world_size, address)
    from learners.fsdp import FsdpBackend

    return FsdpBackend(settings, rank, world_size, address)


def rows_of(samples: list[TrainSample], budget: int | None, rank: int, world_size: int) -> list[Microbatch]:
    """Return one rank's microbatches: packed, or one sample a row, dealt in turn."""
    if budget is not None:
        return split_over_ranks(samples, budget, world_size)[rank]
    mine = [build_microbatch([sample], [[0]]) for sample in samples[rank::world_size]]
    missing = math.ceil(len(samples) / world_size) - len(mine)
    return mine + [build_microbatch([], [])] * missing


def _spawn(world_size: int, chosen: list[tuple[int, Job, str]], folder: str, timeout_s: float) -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch", "transformers.models.llama.modeling_llama"]
    )
    ranks: Any = start_processes(_run_rank, (chosen, folder), world_size, join=False, start_method="forkserver")
    end = time.monotonic() + timeout_s
    while not ranks.join(timeout=1.0):  # returns when one has ended
        if time.monotonic() > end:
            for process in ranks.processes:
                process.kill()
            raise WaitTimeoutError(f"{world_size} ranks to run {len(chosen)} parity jobs", timeout_s)


def _run_rank(rank: int, chosen: list[tuple[int, Job, str]], folder: str) -> None:
    for i, one, address in chosen:
        track = _track(one, rank, address)
        if rank == 0:
            torch.save(track, Path(folder, f"{i}.pt"))


def _track(one: Job, rank: int, address: str) -> Track:
    world_size, shared = one.placement.world_size, one.settings.sequence_parallel
    backend = open_backend(one.settings, rank, world_size, address)
    trainer = Trainer(one.settings, backend)
    if one.gradient_scale != 1.0:
        whole = backend.accumulate
        backend.accumulate = lambda loss, last: whole(loss * one.gradient_scale, last)
    start = {name: tensor.clone() for name, tensor in backend.stream_weights(torch.float32)}
    losses, norms = [], []
    for samples in one.batches:
        # Ranks that share a row are given the same one.
        result = trainer.train([rows_of(samples, one.budget, rank // shared, world_size // shared)])
        if result.skipped:
            raise RuntimeError(f"{one.placement.name}: a step of the parity run was not finite")
        losses.append(result.metrics["train/loss"])
        norms.append(result.metrics["train/grad_norm"])
    update = {name: tensor - start[name] for name, tensor in backend.stream_weights(torch.float32)}
    trainer.close()
    return Track(losses, norms, update)
