"""Checkpoints: written aside while training goes on, renamed, marked complete last. The newest with its marker wins.

checkpoints/step_000010/
    shards/ rng_*.pt trainer.json   the learner's
    critic/                         the same of the critic, where there is one
    loop.json                       progress, ledger, data position, buffer
    metrics.json                    what the step measured
    model.json                      which model this is
    COMPLETE                        the marker

The folders are trusted input: loading shards and generators uses pickle.
"""

import asyncio
import hashlib
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.lease import LeaseLostError
from lwz_ray.config import RunConfig
from lwz_ray.disk import names_full_disk
from lwz_ray.errors import InfrastructureError, LearnerLostError, UserError, WaitTimeoutError
from lwz_ray.group_codec import group_from_dict, group_to_dict
from lwz_ray.grouping import MadeGroup
from lwz_ray.protocols import Learner

log = logging.getLogger(__name__)

MARKER = "COMPLETE"
CRITIC = "critic"
NEARLY_FULL_BYTES = 2**20
END_TIMEOUT_S = 120.0
"""For the checkpoint in the making of a run that fails: what failed may be what writes it."""


def model_identity(model_path: str) -> dict[str, Any]:
    """Return what must agree between a checkpoint and the model that is to continue from it."""
    raw = json.loads(Path(model_path, "config.json").read_text(encoding="utf-8"))
    keys = ("architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    tokenizer = Path(model_path, "tokenizer.json")
    digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:16] if tokenizer.exists() else None
    return {**{k: raw.get(k) for k in keys}, "tokenizer": digest}


class CheckpointStore:
    """Implements the loop's `Checkpoints`; keeps the newest and the best."""

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        run: RunConfig,
        timeout_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """timeout_s: of a save or a load as a whole. check: raises where this process may not write there any more."""
        self._check = check
        self._folder, self._identity, self._run = folder, identity, run
        self._timeout_s = timeout_s
        self._learners: dict[str, Learner] = {}
        self._pending: asyncio.Task[None] | None = None
        self._swept = False

    def attach(self, learner: Learner, critic: Learner | None = None) -> None:
        """Name the learners whose state is saved and loaded."""
        self._learners = {"": learner} | ({CRITIC: critic} if critic is not None else {})

    async def save(
        self, step: int, state: dict[str, Any], buffer: Sequence[MadeGroup], metrics: Mapping[str, Any]
    ) -> None:
        """Take the state of a step; training may go on when this returns, while the files are being written.

        A kill at any moment leaves the earlier checkpoints usable. metrics: the step's, for `run.best_metric`.
        Raises what went wrong with the checkpoint before, and UserError where the disk is full.
        """
        await self.wait()
        self._check()
        # Its own name at every try: a rank of a lost group may still write into the one before.
        aside = self._folder / f".step_{step:06d}.{uuid.uuid4().hex[:8]}.partial"
        files = {
            "loop.json": json.dumps({**state, "buffer": [group_to_dict(m) for m in buffer]}, ensure_ascii=False),
            "metrics.json": json.dumps(_numbers(metrics)),
            "model.json": json.dumps(self._identity),
        }
        try:
            await asyncio.to_thread(self._prepare, aside)
            for name, learner in self._taken().items():
                (aside / name).mkdir(exist_ok=True)
                await learner.save(str(aside / name))
        except LearnerLostError:
            raise
        except Exception as error:
            raise await self._failed(step, aside, error) from error
        self._pending = asyncio.create_task(self._finish(step, aside, files), name=f"checkpoint of step {step}")
        if not self._run.checkpoint_async:
            await self.wait()

    async def wait(self) -> None:
        """Return when the last `save` is complete and the superfluous ones are gone; raise what went wrong with it."""
        await self._wait(self._timeout_s)

    async def _wait(self, timeout_s: float) -> None:
        task = self._pending
        if task is None:
            return
        done, _ = await asyncio.wait([task], timeout=timeout_s)
        self._pending = None
        if not done:
            task.cancel()
            raise WaitTimeoutError(f"the {task.get_name()} in {self._folder}", timeout_s)
        task.result()

    async def end(self) -> str | None:
        """Let the last `save` be completed where the run fails for another reason; return its own error, if any."""
        try:
            await self._wait(min(self._timeout_s, END_TIMEOUT_S))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    async def abandon(self) -> None:
        """Give up what is under way after the learners were lost and killed; the folder is swept before the next save.

        A checkpoint that is complete nevertheless is a good one: every rank said that its files are on disk.
        """
        if unfinished := await self.end():
            log.warning("the checkpoint that was under way is given up: %s", unfinished)
        self._swept = False

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
        """Load the learners' state; return the loop's and the buffer."""
        await self.wait()
        for name, learner in self._taken().items():
            if not (checkpoint / name).is_dir():
                raise UserError(
                    f"run.resume=auto: {checkpoint} holds no {name}: it was written by a run without one; continue "
                    "with that run's algorithm, or choose another run.name"
                )
            await learner.load(str(checkpoint / name))
        state = json.loads((checkpoint / "loop.json").read_text(encoding="utf-8"))
        return state, [group_from_dict(g) for g in state.pop("buffer")]

    def _taken(self) -> dict[str, Learner]:
        if not self._learners:
            raise RuntimeError("the checkpoint store has no learner yet")
        return self._learners

    def _prepare(self, aside: Path) -> None:
        """Make the folder aside; first of all clear what a killed attempt left half-written or half-deleted."""
        if not self._swept and self._folder.is_dir():
            complete = set(self._complete())
            for path in (*self._folder.glob(".step_*.partial"), *self._folder.glob("step_*")):
                if path not in complete:
                    # A rank of a lost group may still write into a folder aside; the next sweep finds the rest.
                    shutil.rmtree(path, ignore_errors=path.name.startswith("."))
        self._swept = True
        aside.mkdir(parents=True)

    async def _finish(self, step: int, aside: Path, files: Mapping[str, str]) -> None:
        """Complete a checkpoint: learners' files, ours, the rename, the marker; then drop what is not kept."""
        try:
            for learner in self._learners.values():
                await learner.finish_save()
            await asyncio.to_thread(self._complete_folder, step, aside, files)
        except (LearnerLostError, LeaseLostError):
            raise
        except Exception as error:
            raise await self._failed(step, aside, error) from error
        await asyncio.to_thread(self._prune)

    def _complete_folder(self, step: int, aside: Path, files: Mapping[str, str]) -> None:
        final = self._folder / f"step_{step:06d}"
        for name, text in files.items():
            (aside / name).write_text(text, encoding="utf-8")
        _sync_tree(aside)
        self._check()
        if final.exists():
            _remove(final)
        os.rename(aside, final)
        _sync(self._folder)
        (final / MARKER).write_text(json.dumps({"step": step}), encoding="utf-8")
        _sync(final / MARKER)
        _sync(final)

    async def _failed(self, step: int, aside: Path, error: Exception) -> Exception:
        """Remove what was written of a checkpoint; return the error to raise, with the one that remains usable."""
        free = shutil.disk_usage(_existing(self._folder)).free
        written = await asyncio.to_thread(_size, aside)
        await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)
        complete = await asyncio.to_thread(self._complete)
        remains = f"{complete[-1].name} remains usable" if complete else "there is no earlier one"
        needed = await asyncio.to_thread(_size, complete[-1]) if complete else None
        # Ray's errors carry a traceback; their last line says what happened.
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"
        # An error from C++ says nothing of why a write failed; the space that is left does.
        if names_full_disk(error) or free < NEARLY_FULL_BYTES or (needed is not None and free < needed - written):
            known = "" if needed is None else f" of about {needed:,}"
            return UserError(
                f"the checkpoint of step {step} does not fit in {self._folder}: {written:,} bytes{known} were written "
                f"and {free:,} are free; {remains}. Make room, or lower "
                f"run.keep_checkpoints={self._run.keep_checkpoints} or run.keep_best={self._run.keep_best}, and "
                f"continue with run.resume=auto ({why})"
            )
        return InfrastructureError(f"the checkpoint of step {step} in {self._folder} was not written; {remains}: {why}")

    def _complete(self) -> list[Path]:
        """Return the complete checkpoints by step, the newest last."""
        return sorted((p for p in self._folder.glob("step_*") if (p / MARKER).exists()), key=_step)

    def _prune(self) -> None:
        """Drop all but the newest and the best; between equals the newer is the better."""
        complete = self._complete()
        measured = [(value, p) for p in complete if (value := self._best_value(p)) is not None]
        sign = 1.0 if self._run.best_mode == "max" else -1.0
        best = sorted(measured, key=lambda item: (sign * item[0], _step(item[1])), reverse=True)
        kept = {*complete[-self._run.keep_checkpoints :], *(p for _, p in best[: self._run.keep_best])}
        for path in complete:
            if path not in kept:
                _remove(path)

    def _best_value(self, checkpoint: Path) -> float | None:
        return json.loads((checkpoint / "metrics.json").read_text(encoding="utf-8")).get(self._run.best_metric)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers; a step whose metric is not finite has not measured it."""
    return {k: v for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _remove(checkpoint: Path) -> None:
    """Take the marker first: a kill half-way leaves no complete-looking rest."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    _sync(checkpoint)
    shutil.rmtree(checkpoint)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)
