"""Checkpoints: written aside, renamed, marked complete last. The newest with its marker wins.

checkpoints/step_000010/
    shards/ rng_*.pt trainer.json   the learner's
    loop.json                       progress, ledger, data position, buffer
    model.json                      which model this is
    COMPLETE                        the marker
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lwz_ray.errors import UserError
from lwz_ray.group_codec import group_from_dict, group_to_dict
from lwz_ray.grouping import MadeGroup
from lwz_ray.protocols import Learner

MARKER = "COMPLETE"


def model_identity(model_path: str) -> dict[str, Any]:
    """Return what must agree between a checkpoint and the model that is to continue from it."""
    raw = json.loads(Path(model_path, "config.json").read_text(encoding="utf-8"))
    keys = ("architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    tokenizer = Path(model_path, "tokenizer.json")
    digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:16] if tokenizer.exists() else None
    return {**{k: raw.get(k) for k in keys}, "tokenizer": digest}


class CheckpointStore:
    """Implements the loop's `Checkpoints`; keeps the last k."""

    def __init__(self, folder: Path, learner: Learner | None, identity: dict[str, Any], keep: int) -> None:
        self._folder = folder
        self._learner = learner
        self._identity = identity
        self._keep = keep

    def attach(self, learner: Learner) -> None:
        """Name the learner whose state is saved and loaded."""
        self._learner = learner

    @property
    def learner(self) -> Learner:
        if self._learner is None:
            raise RuntimeError("the checkpoint store has no learner yet")
        return self._learner

    async def save(self, step: int, state: dict[str, Any], buffer: Sequence[MadeGroup]) -> None:
        """Write the checkpoint of a step; a kill at any moment leaves the earlier ones usable."""
        final = self._folder / f"step_{step:06d}"
        aside = self._folder / f".step_{step:06d}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        await self.learner.save(str(aside))
        _write(aside / "loop.json", {**state, "buffer": [group_to_dict(m) for m in buffer]})
        _write(aside / "model.json", self._identity)
        if final.exists():
            await asyncio.to_thread(shutil.rmtree, final)
        os.rename(aside, final)
        _write(final / MARKER, {"step": step})
        await asyncio.to_thread(self._prune)

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, after checking that it belongs to this model."""
        complete = self._complete()
        if not complete:
            return None
        found = json.loads((complete[-1] / "model.json").read_text(encoding="utf-8"))
        if found != self._identity:
            differing = [k for k in self._identity if found.get(k) != self._identity[k]]
            shown = ", ".join(f"{k} {found.get(k)} there, {self._identity[k]} here" for k in differing)
            raise UserError(
                f"run.resume=auto: {complete[-1]} was written by another model ({shown}); "
                "set model.path to that model or choose another run.name"
            )
        return complete[-1]

    async def load(self, checkpoint: Path) -> tuple[dict[str, Any], list[MadeGroup]]:
        """Load the learner's state; return the loop's and the buffer."""
        await self.learner.load(str(checkpoint))
        state = json.loads((checkpoint / "loop.json").read_text(encoding="utf-8"))
        return state, [group_from_dict(g) for g in state.pop("buffer")]

    def _complete(self) -> list[Path]:
        return sorted(p for p in self._folder.glob("step_*") if (p / MARKER).exists())

    def _prune(self) -> None:
        for path in self._complete()[: -self._keep]:
            (path / MARKER).unlink()
            shutil.rmtree(path)


def _write(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
