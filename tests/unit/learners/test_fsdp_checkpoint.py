"""FSDP2 checkpoints: bit-equal continuation, other numbers of ranks, writing beside training, full disks."""

import errno
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.tensor import DTensor

from learners.fsdp import FsdpBackend
from learners.fsdp_checkpoint import FsdpCheckpoint, ShardWriter
from learners.trainer import Trainer
from lwz_ray.errors import WaitTimeoutError
from lwz_ray.packing import split_over_ranks
from tests.learner_parts import batch, meeting_address, run_ranks, settings

SAVED_STEP, LAST_STEP = 2, 4
LENGTHS = {1: (5, 9), 2: (17, 2), 3: (30, 11, 4), 4: (8,)}
"""Of the completions of each step's batch."""

Seen = dict[int, list[dict[str, Any]]]
"""By number of ranks: what each rank saw."""


def train_step(trainer: Trainer, step: int, rank: int, world_size: int) -> None:
    plan = split_over_ranks(batch(LENGTHS[step], seed=step), 64, world_size)
    trainer.train([plan[rank]])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of the whole tensor; a collective."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def state_of(backend: FsdpBackend) -> dict[str, Any]:
    """Return every weight and every moment, whole, and the next numbers of this rank's generator."""
    named = [(name, p) for name, p in backend.model.named_parameters() if p.requires_grad]
    return {
        "weights": {name: whole(p.detach()) for name, p in named},
        "moments": {f"{name}.{k}": whole(v) for name, p in named for k, v in backend.optimizer.state[p].items()},
        "drawn": torch.rand(4),
    }


def story(
    rank: int, world_size: int, address: str, model: str, folder: str, load: str | None = None, full: str | None = None
) -> None:
    """Train to the last step, from the start or from a checkpoint; write the state on the way to `folder`.

    From the start, a checkpoint is taken on the way, and training goes on at once. full: a folder to fail to save in.
    """
    wanted = settings(Path(model), eps=1e-6, warmup_steps=6)
    backend = FsdpBackend(wanted, rank, world_size, address)
    trainer, seen = Trainer(wanted, backend), {}
    if load is not None:
        trainer.load(load)
        torch.save({"steps": trainer.optimizer_steps, **state_of(backend)}, Path(folder, f"loaded_{rank}.pt"))
        trainer.load(load)  # the generator was drawn from
    for step in range(1 if load is None else SAVED_STEP + 1, LAST_STEP + 1):
        train_step(trainer, step, rank, world_size)
        if load is None and step == SAVED_STEP:
            trainer.save(folder)
            seen["at_save"] = {name: whole(p.detach()) for name, p in backend.model.named_parameters()}
    seen |= state_of(backend)
    trainer.finish_save()
    if full is not None:
        backend.save(full)
        try:
            backend.finish_save()
        except OSError as error:
            seen["full"] = (error.errno, str(error))
    torch.save(seen, Path(folder, f"seen_{rank}.pt"))
    trainer.close()


def run_story(world_size: int, model: Path, folder: Path, **named: Any) -> list[dict[str, Any]]:
    run_ranks(partial(story, **named), world_size, (world_size, meeting_address(), str(model), str(folder)))
    return [torch.load(folder / f"seen_{r}.pt") for r in range(world_size)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def undisturbed(tiny_model_dir: Path, place: Path) -> Seen:
    """Return what each rank of one and of two saw, trained without an interruption."""
    full = place / "full"
    (full / "shards").mkdir(parents=True)
    (full / "shards" / "__1_0.distcp").symlink_to("/dev/full")  # rank 1's file: every write fails as on a full disk
    out = {}
    for world_size in (1, 2):
        folder = place / f"of_{world_size}"
        folder.mkdir()
        named = {"full": str(full)} if world_size == 2 else {}
        out[world_size] = run_story(world_size, tiny_model_dir, folder, **named)
    return out


@pytest.mark.parametrize("world_size", [1, 2])
def test_new_processes_continue_bit_by_bit(
    undisturbed: Seen, tiny_model_dir: Path, place: Path, tmp_path: Path, world_size: int
):
    resumed = run_story(world_size, tiny_model_dir, tmp_path, load=str(place / f"of_{world_size}"))
    for rank, (found, wanted) in enumerate(zip(resumed, undisturbed[world_size], strict=True)):
        loaded = torch.load(tmp_path / f"loaded_{rank}.pt")
        assert loaded["steps"] == SAVED_STEP
        for name, tensor in wanted["at_save"].items():
            assert torch.equal(loaded["weights"][name], tensor), name
            assert not torch.equal(wanted["weights"][name], tensor), name  # training went on after the save
        assert {float(v) for k, v in loaded["moments"].items() if k.endswith(".step")} == {SAVED_STEP}
        for section in ("weights", "moments"):
            assert set(found[section]) == set(wanted[section])
            for name, tensor in wanted[section].items():
                assert torch.equal(found[section][name], tensor), name
        assert found["drawn"].tolist() == wanted["drawn"].tolist()
    draws = {tuple(r["drawn"].tolist()) for r in resumed}
    assert len(draws) == world_size  # each rank has a generator of its own


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_continues(
    undisturbed: Seen,
    tiny_model_dir: Path,
    place: Path,
    tmp_path: Path,
    before: int,
    now: int,
):
    resumed = run_story(now, tiny_model_dir, tmp_path, load=str(place / f"of_{before}"))
    (wanted, *_) = undisturbed[before]
    for rank, found in enumerate(resumed):
        loaded = torch.load(tmp_path / f"loaded_{rank}.pt")
        for name, start in wanted["at_save"].items():
            assert torch.equal(loaded["weights"][name], start), name
            moved = wanted["weights"][name] - start
            assert ((found["weights"][name] - wanted["weights"][name]).norm() / moved.norm()).item() < 1e-5, name
        for name, tensor in wanted["moments"].items():
            difference = (found["moments"][name] - tensor).norm() / tensor.norm()
            assert difference.item() < 1e-5, name


def test_a_full_disk_of_one_rank_is_told_on_every_rank(undisturbed: Seen):
    for rank in undisturbed[2]:
        code, text = rank["full"]
        assert code == errno.ENOSPC
        assert text.endswith("full could not be written: rank 1: OSError: [Errno 28] No space left on device")


class HeldWriter(ShardWriter):
    """Writes when `release` is set."""

    release = threading.Event()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        assert self.release.wait(60.0)
        return super().write_data(plan, planner)


class HeldCheckpoint(FsdpCheckpoint):
    writer = HeldWriter


def test_training_on_does_not_change_what_is_written(tiny_model_dir: Path, tmp_path: Path):
    """The shards are written after the next step here; they hold the weights from before it."""
    wanted = settings(tiny_model_dir)
    backend = FsdpBackend(wanted, 0, 1, meeting_address())
    try:
        trainer = Trainer(wanted, backend)
        checkpoint = HeldCheckpoint(backend.model, backend.optimizer, 0, backend.mesh, 60.0)
        train_step(trainer, 1, 0, 1)
        checkpoint.save(str(tmp_path))
        saved = state_of(backend)
        train_step(trainer, 2, 0, 1)
        assert not list(tmp_path.glob("shards/*.distcp"))
        HeldWriter.release.set()
        checkpoint.finish()
        after = state_of(backend)
        checkpoint.load(str(tmp_path))
        loaded = state_of(backend)
    finally:
        HeldWriter.release.clear()
        backend.close()
    for section in ("weights", "moments"):
        assert all(torch.equal(loaded[section][k], v) for k, v in saved[section].items())
        assert not any(torch.equal(after[section][k], v) for k, v in saved[section].items() if "norm" in k)
    assert torch.equal(loaded["drawn"], saved["drawn"]) and not torch.equal(after["drawn"], saved["drawn"])


def test_a_writer_that_hangs_and_other_weights_are_named(tiny_model_dir: Path, tmp_path: Path):
    wanted = settings(tiny_model_dir)
    backend = FsdpBackend(wanted, 0, 1, meeting_address())
    try:
        checkpoint = HeldCheckpoint(backend.model, backend.optimizer, 0, backend.mesh, 0.2)
        checkpoint.save(str(tmp_path))
        with pytest.raises(WaitTimeoutError, match=r"waited 0.2 s for the shards of the checkpoint in "):
            checkpoint.finish()
        HeldWriter.release.set()
        later = FsdpCheckpoint(backend.model, backend.optimizer, 0, backend.mesh, 60.0)
        os.makedirs(tmp_path / "later")
        later.save(str(tmp_path / "later"))
        later.finish()
        later.load(str(tmp_path / "later"))
        assert len(backend.optimizer.state) == 0  # no step was taken, and loading took none
        for parameter in list(backend.model.parameters())[:1]:
            parameter.requires_grad_(False)
        with pytest.raises(ValueError, match=r"other weights than those trained here: 0 are missing \(none\), 1 "):
            later.load(str(tmp_path / "later"))
    finally:
        HeldWriter.release.clear()
        backend.close()
