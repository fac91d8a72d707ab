"""Checkpoints of an FSDP2 rank: shards through torch.distributed.checkpoint, written while training goes on.

    save ──▶ copy of this rank's shards in host memory ──▶ a thread writes them ──▶ finish
                     (training may go on)                (gloo group of its own)

The files say where each shard lies in the whole tensor, so another number of ranks can read them.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh

from lwz_ray.disk import DISK_FULL, disk_full
from lwz_ray.errors import InfrastructureError, WaitTimeoutError

TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)
"""Base weights under adapters come from the model's folder; torch's `strict` would ask for them too."""


class ShardWriter(FileSystemWriter):
    """Says that the disk is full: torch's archive writer covers that with an error about positions in the file."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            full = disk_full(error)
            if full is None:
                raise
            raise full from error


class FsdpCheckpoint:
    """Writes and reads one rank's weights, optimizer state and generators. Every rank makes the same calls."""

    writer: type[FileSystemWriter] = ShardWriter

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        rank: int,
        device_mesh: DeviceMesh,
        timeout_s: float,
    ) -> None:
        """Open the group that the writers agree in; training's collectives run in another at the same time.

        timeout_s: of every collective of that group, and of `finish`.
        """
        self._model, self._optimizer, self._rank = model, optimizer, rank
        self._device = device_mesh.device_type
        self._timeout_s = timeout_s
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        assert isinstance(group, dist.ProcessGroup)  # every rank is a member
        self._group = group
        self._writing: Future[Any] | None = None
        self._folder = ""

    def save(self, folder: str) -> None:
        """Copy the state and begin to write it into the existing folder; the weights may change when this returns."""
        self.finish()
        torch.save(_generators(self._device), _generator_file(folder, self._rank))
        state = {"model": self._weights(), "optimizer": self._optimizer_state()}
        writer = self.writer(os.path.join(folder, "shards"))
        # Without options of its own, async_save copies in this thread and returns with the copy complete.
        writing = async_save(state, storage_writer=writer, process_group=self._group)
        assert isinstance(writing, Future)
        self._folder, self._writing = folder, writing

    def finish(self) -> None:
        """Return when the last `save` is on disk; no-op where none is under way.

        Raises OSError where a rank's disk is full, InfrastructureError where a rank failed otherwise, and
        WaitTimeoutError.
        """
        if self._writing is None:
            return
        try:
            self._writing.result(self._timeout_s)
        except TimeoutError as error:
            raise WaitTimeoutError(f"the shards of the checkpoint in {self._folder}", self._timeout_s) from error
        except CheckpointException as error:  # a BaseException, which would end the process of a Ray actor
            raise _as_error(error, self._folder) from error
        finally:
            self._writing = None

    def load(self, folder: str) -> None:
        """Load what `save` wrote, on any number of ranks. The folder is trusted input: reading it uses pickle.

        Raises ValueError where its weights are not those that are trained here.
        """
        self.finish()
        shards = os.path.join(folder, "shards")
        found = FileSystemReader(shards).read_metadata().state_dict_metadata
        weights = self._weights()
        _check_names(set(weights), {k.removeprefix("model.") for k in found if k.startswith("model.")}, folder)
        moments = self._optimizer_targets(found)
        load_shards({"model": weights, "optimizer": moments}, checkpoint_id=shards, process_group=self._group)
        set_model_state_dict(self._model, weights, options=TRAINED_ONLY)
        self._optimizer.state.clear()
        for name, parameter in self._trained():
            if name in moments:
                # The tensors were loaded in place.
                self._optimizer.state[parameter] = moments[name]
        file = _generator_file(folder, self._rank)
        if file.exists():  # a rank that the checkpoint's group did not have keeps its seed's state
            _set_generators(torch.load(file, weights_only=True))

    def _weights(self) -> dict[str, Any]:
        found = get_model_state_dict(self._model, options=TRAINED_ONLY)
        # A tied head is a second name of the embedding: torch leaves out the first alone where it is frozen.
        trained = {name for name, _ in self._trained()}
        return {name: tensor for name, tensor in found.items() if name in trained}

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)

    def _optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return {parameter: {moment: tensor}}; a parameter that never took a step has none.

        Rates and decays are the config's and are not kept. torch's own `get_optimizer_state_dict` takes a step of
        rate 0 where there is no state yet, and that step would count in AdamW's bias correction.
        """
        state = self._optimizer.state
        found = {
            name: {key: value for key, value in state[p].items() if value is not None}
            for name, p in self._trained()
            if p in state
        }
        if len(found) != len(state):  # gathered parameters are other objects than the optimizer's shards
            raise RuntimeError(f"optimizer state of {len(state)} parameters, but {len(found)} of them are trained")
        return found

    def _optimizer_targets(self, found: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
        """Return empty tensors, sharded as the parameters are, for the optimizer state that a checkpoint holds."""
        parameters, out = dict(self._trained()), {}
        for key, metadata in found.items():
            section, _, path = key.partition(".")
            if section == "optimizer":
                name, _, moment = path.rpartition(".")
                out.setdefault(name, {})[moment] = _target(metadata, parameters[name])
        return out


def _target(metadata: TensorStorageMetadata, parameter: torch.nn.Parameter) -> torch.Tensor:
    if metadata.size == parameter.shape:
        return torch.empty_like(parameter.detach(), dtype=metadata.properties.dtype)
    return torch.empty(metadata.size, dtype=metadata.properties.dtype)  # AdamW's count of steps, on the host


def _check_names(wanted: set[str], found: set[str], folder: str) -> None:
    if wanted != found:
        missing, more = sorted(wanted - found), sorted(found - wanted)
        raise ValueError(
            f"{folder} holds other weights than those trained here: {len(missing)} are missing "
            f"({', '.join(missing[:2]) or 'none'}), {len(more)} are not known here ({', '.join(more[:2]) or 'none'})"
        )


def _as_error(error: CheckpointException, folder: str) -> OSError | InfrastructureError:
    """Return an Exception that names the ranks and their reasons."""
    reasons = {rank: failure for rank, (failure, _) in error.failures.items()}
    text = "; ".join(f"rank {rank}: {type(e).__name__}: {e}" for rank, e in sorted(reasons.items()))
    text = f"the shards of the checkpoint in {folder} could not be written: {text}"
    full = [e.errno for e in reasons.values() if isinstance(e, OSError) and e.errno in DISK_FULL]
    return OSError(full[0], text) if full else InfrastructureError(text)


def _generator_file(folder: str, rank: int) -> Path:
    return Path(folder, f"rng_{rank}.pt")


def _generators(device: str) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if device == "cuda" else state


def _set_generators(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
