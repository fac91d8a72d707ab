"""Checkpoints of a DeepSpeed rank: its own files, and its universal checkpoint where the number of ranks differs.

FOLDER/deepspeed/zero/*.pt    one file of optimizer partitions a rank, and the module's
FOLDER/deepspeed.json         what the files are bound to
FOLDER/rng_N.pt               generators
FOLDER/universal/             only while another number of ranks loads: whole tensors, one folder a parameter
"""

import io
import json
import os
import shutil
from argparse import Namespace
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from learners.backend import other_backend
from lwz_ray.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from learners.deepspeed import DeepSpeedBackend

TAG = "zero"
CONVERTED = "universal"


class DeepSpeedCheckpoint:
    """Writes and reads one rank's part. Every rank makes the same calls in the same order."""

    def __init__(self, backend: "DeepSpeedBackend") -> None:
        self._backend = backend
        module = backend.engine.module
        self._frozen = any(not p.requires_grad for p in module.parameters())
        if self._frozen:
            module.register_state_dict_post_hook(_drop_frozen)

    def save(self, folder: str) -> None:
        """Write into the existing folder. Base weights under adapters are left out: they come from the model's."""
        backend = self._backend
        backend.engine.save_checkpoint(
            os.path.join(folder, "deepspeed"), tag=TAG, save_latest=False, exclude_frozen_parameters=self._frozen
        )
        generators = {"cpu": torch.get_rng_state()}
        if backend.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state()
        torch.save(generators, _generator_file(folder, backend.rank))
        if backend.is_sender:
            Path(folder, "deepspeed.json").write_text(json.dumps({"ranks": backend.world_size} | self._bound_to()))
        backend.deepspeed.comm.barrier()

    def load(self, folder: str) -> None:
        """Load what `save` wrote, bit-equal on the same number of ranks. The folder is trusted input: pickles.

        Raises UserError where another backend, stage or dtype wrote it, or where another number of ranks cannot be
        converted.
        """
        path = Path(folder, "deepspeed.json")
        if not path.is_file():
            raise UserError(other_backend("deepspeed", folder, "fsdp"))
        layout = json.loads(path.read_text())
        for key, wanted in self._bound_to().items():
            if layout[key] != wanted:
                raise UserError(f"learners.{key}={wanted}: the checkpoint {folder} needs learners.{key}={layout[key]}")
        if layout["ranks"] == self._backend.world_size:
            self._load(os.path.join(folder, "deepspeed"))
        else:
            self._load_converted(folder)
        generators = _generator_file(folder, self._backend.rank)
        if generators.exists():  # a rank that the checkpoint's group did not have keeps its seed's state
            state = torch.load(generators, weights_only=True)
            torch.set_rng_state(state["cpu"])
            if "cuda" in state and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["cuda"])

    def _bound_to(self) -> dict[str, int | str]:
        """Return the config keys that a checkpoint is bound to."""
        settings = self._backend.settings
        return {"zero_stage": settings.zero_stage, "dtype": settings.dtype}

    def _load(self, folder: str) -> None:
        engine = self._backend.engine
        loaded, _ = engine.load_checkpoint(folder, tag=TAG, load_module_strict=not self._frozen)
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint {TAG!r} in {folder}")

    def _load_converted(self, folder: str) -> None:
        """Let rank 0 write whole tensors beside the shards, load this rank's part of them, and remove them."""
        backend, out = self._backend, os.path.join(folder, CONVERTED)
        if backend.settings.optimizer != "adamw":
            raise UserError(
                f"learners.ranks={backend.world_size}: DeepSpeed converts checkpoints for another number of ranks only "
                "with AdamW's state; continue with the ranks that wrote it"
            )
        error: Exception | None = None
        if backend.is_sender:
            try:
                self._convert(os.path.join(folder, "deepspeed", TAG), out)
            except Exception as raised:  # told to the others first, which would wait for this rank in vain
                error = raised
        (failures,) = backend.sum_over_ranks([float(error is not None)])
        if error is not None:
            raise error
        if failures:
            raise RuntimeError(f"rank 0 could not convert the checkpoint {folder}; its own error says why")
        try:
            with _universal(backend.engine):
                self._load(out)
            backend.deepspeed.comm.barrier()
        finally:
            if backend.is_sender:
                shutil.rmtree(out, ignore_errors=True)

    def _convert(self, source: str, out: str) -> None:
        """Write DeepSpeed's universal checkpoint: float32 weights and both moments, 12 bytes a trained parameter."""
        shutil.rmtree(out, ignore_errors=True)  # of a load that was killed
        os.makedirs(out)
        wanted = Namespace(
            input_folder=source,
            output_folder=os.path.join(out, TAG),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # its progress bars
            self._backend.deepspeed.checkpoint.ds_to_universal.main(wanted)


def _drop_frozen(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Drop frozen weights by all their names; DeepSpeed drops a tied one by its first name only."""
    for name, parameter in module.named_parameters(prefix=prefix.removesuffix("."), remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(name, None)


@contextmanager
def _universal(engine: Any) -> "Iterator[None]":
    """Let the engine read a universal checkpoint; a key of its config, which has no argument of `load_checkpoint`."""
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False


def _generator_file(folder: str, rank: int) -> Path:
    return Path(folder, f"rng_{rank}.pt")
