"""kill -9 at random moments of a learner that trains and saves without a pause: the newest complete one continues."""

import asyncio
import hashlib
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from launch.checkpoints import MARKER, CheckpointStore
from learners.fsdp import FsdpBackend
from learners.group import LearnerGroup
from learners.trainer import Trainer
from lwz_ray.config import RunConfig
from tests.learner_parts import batch, meeting_address, settings

KILLS = 10
ANY_MOMENT_S = 0.6
"""After a checkpoint: the time of a few more."""
WHILE_WRITING_S = 0.05
PATIENCE_S = 60.0
RUN = {
    "name": "kill",
    "dir": "unused",
    "resume": "auto",
    "lease_timeout_s": 60.0,
    "checkpoint_every_steps": 1,
    "checkpoint_async": True,
    "keep_checkpoints": 1,
    "keep_best": 1,
    "best_metric": "train/loss",
    "best_mode": "min",
}


class OneRank:
    """The calls of a trainer in this process; the waiting for the disk goes on beside training, as in a Ray actor."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    async def train(self, minibatches: list[list[Any]]) -> Any:
        return self._trainer.train(minibatches)

    async def save(self, folder: str) -> None:
        self._trainer.save(folder)

    async def finish_save(self) -> None:
        await asyncio.to_thread(self._trainer.finish_save)

    async def load(self, folder: str) -> None:
        self._trainer.load(folder)


def digest_of(backend: FsdpBackend) -> str:
    """Return one word for all bits of weights and moments."""
    found = hashlib.sha256()
    for name, parameter in backend.model.named_parameters():
        moments = backend.optimizer.state.get(parameter, {})
        for value in (parameter, *(moments[k] for k in sorted(moments))):
            whole = value.detach()
            local = whole.to_local() if isinstance(whole, DTensor) else whole
            found.update(name.encode() + local.numpy().tobytes())
    return found.hexdigest()


async def train_and_save(model: str, folder: Path, steps: int) -> None:
    """Continue from the newest checkpoint, if any, and save every step."""
    wanted = settings(Path(model))
    backend = FsdpBackend(wanted, 0, 1, meeting_address())
    rank: Any = OneRank(Trainer(wanted, backend))
    learner: Any = LearnerGroup([rank], 64, 60.0)
    store = CheckpointStore(folder / "checkpoints", {"model": "tiny"}, RunConfig.model_validate(RUN), 60.0)
    store.attach(learner)
    reached, newest = 0, store.newest()
    if newest is not None:
        state, _ = await store.load(newest)
        reached = state["step"]
        if digest_of(backend) != state["digest"] or newest.name != f"step_{reached:06d}":
            raise AssertionError(f"{newest} is not what was saved")
    for step in range(reached + 1, reached + 1 + steps):
        await learner.train([batch((3, 2), seed=step)])
        state = {"step": step, "digest": digest_of(backend)}
        await store.save(step, state, [], {"train/loss": (step * 37 % 101) / 10})
    await store.wait()
    backend.close()


def child(model: str, folder: str, steps: int) -> None:
    torch.set_num_threads(1)
    asyncio.run(train_and_save(model, Path(folder), steps))


def start(model: Path, folder: Path, steps: int) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers.models.llama.modeling_llama"])
    process = context.Process(target=child, args=(str(model), str(folder), steps))
    process.start()
    return process


def complete(folder: Path) -> list[int]:
    return sorted(int(p.parent.name.removeprefix("step_")) for p in folder.glob(f"checkpoints/step_*/{MARKER}"))


def holds_newer(folder: Path, step: int) -> bool:
    return complete(folder)[-1:] > [step]


def wait_for(holds: Callable[[], bool], process: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if process.exitcode is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"no {what} within {PATIENCE_S:g} s; exit code {process.exitcode}")
        time.sleep(0.002)


def test_a_kill_at_any_moment_leaves_a_usable_checkpoint(tiny_model_dir: Path, tmp_path: Path):
    """Every process checks what it loads against the digest that was taken when it was saved."""
    drawn, place = random.Random(4), tmp_path / "checkpoints"
    newest = interrupted = 0
    for number in range(KILLS):
        process = start(tiny_model_dir, tmp_path, steps=10**6)
        before = newest
        wait_for(partial(holds_newer, tmp_path, before), process, "new checkpoint")
        if number % 2:  # any moment; else one at which the next is being written
            time.sleep(drawn.uniform(0.0, ANY_MOMENT_S))
        else:
            wait_for(lambda: any(place.glob(".*.partial")), process, "checkpoint in the making")
            time.sleep(drawn.uniform(0.0, WHILE_WRITING_S))
        process.kill()
        process.join(PATIENCE_S)
        assert process.exitcode == -signal.SIGKILL
        left = complete(tmp_path)
        assert left[-1] > before
        newest = left[-1]
        interrupted += len(left) < len(list(place.iterdir()))
    assert interrupted > 0
    last = start(tiny_model_dir, tmp_path, steps=2)
    last.join(PATIENCE_S)
    assert last.exitcode == 0
    assert complete(tmp_path)[-1] == newest + 2
    left = list(place.iterdir())
    assert len(left) == len(complete(tmp_path)) <= 2  # the newest and the best; nothing half-written stays
