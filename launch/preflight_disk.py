"""The disk that a run needs, before it starts: checkpoints with the one in the making, the export, staged weights."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from launch.memory import GIB, WIDTHS, Term
from launch.run_folder import run_path
from launch.shapes import lora_parameters, shape_of
from launch.stage_table import LEARNING
from lwz_ray.config import Config
from lwz_ray.disk import VERSIONS_HELD
from lwz_ray.errors import UserError

ADAMW_BYTES = 12
"""Of a trained parameter in a checkpoint: float32 weight and two moments."""
EXPORT_BYTES = 2
"""Of a parameter in export/, bfloat16."""
STAGING_FALLBACK = "/tmp"
"""Tried where `weights.staging_dir` has no room."""
STAGED = "staged weights"
"""The term of what lies in `weights.staging_dir` while a run goes on."""


def disk_terms(config: Config) -> list[Term]:
    """Return what a whole run leaves and stages on the disk of `run.dir`, with the arithmetic.

    Raises UserError where a model is not here and its shape is not known.
    """
    whole = num_parameters("model.path", config.model.path)
    trained = _trained(config, whole)
    one, formula = _checkpoint(config, trained)
    run, made = config.run, math.ceil(config.steps / config.run.checkpoint_every_steps)
    kept = run.keep_checkpoints + run.keep_best + 1
    if made < kept:
        times = f"{made} (run.checkpoint_every_steps={run.checkpoint_every_steps} in {config.steps} steps)"
    else:
        times = (
            f"{kept} (run.keep_checkpoints={run.keep_checkpoints} + run.keep_best={run.keep_best} + 1 in the making)"
        )
    terms = [
        Term("checkpoints", f"({formula}) x {times}", one * min(made, kept)),
        Term("export", f"{whole:,} parameters x {EXPORT_BYTES} B", whole * EXPORT_BYTES),
    ]
    if config.stage == "rl" and _device(Path(config.weights.staging_dir)) == _device(run_path(run)):
        terms.append(staging_term(config, trained if config.lora.rank else whole))
    return terms


def staging_term(config: Config, published: int) -> Term:
    """Return what is staged for the engines of one host, learner rank 0's; published: numbers in one version.

    Adapters cross in float32. Engines that are reached through the object store stage a copy each, on their own host:
    it counts where that is certain to be this one.
    """
    width = WIDTHS["float32" if config.lora.rank else config.actors.dtype]
    times, note = VERSIONS_HELD, f"{VERSIONS_HELD} versions"
    if config.weights.transport == "object_store" and config.cluster.address == "local":
        times += config.actors.replicas
        note += f" and a copy for each of actors.replicas={config.actors.replicas}"
    return Term(STAGED, f"{published:,} x {width} B x ({note}) in weights.staging_dir", published * width * times)


def check_staging(config: Config) -> None:
    """Raise UserError where no folder of this host can take the staged weights.

    Room is looked for where the learner is sure to run here, in a cluster of this machine alone.
    """
    folder = Path(config.weights.staging_dir)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"weights.staging_dir={str(folder)!r}: not a folder that can be written; name a local one")
    nccl = config.weights.transport == "nccl" or (
        config.weights.transport == "auto" and config.learners.device == "cuda"
    )
    if config.stage != "rl" or config.cluster.address != "local" or nccl or not _countable(config):
        return
    whole = num_parameters("model.path", config.model.path)
    term = staging_term(config, _trained(config, whole) if config.lora.rank else whole)
    free = {path: shutil.disk_usage(path).free for path in (str(folder), STAGING_FALLBACK)}
    if max(free.values()) < term.num_bytes:
        seen = ", ".join(f"{path} has {size / GIB:.2f} GiB" for path, size in free.items())
        raise UserError(
            f"weights.staging_dir={str(folder)!r}: staged weights need {term.num_bytes / GIB:.2f} GiB "
            f"({term.formula}), {seen} free; make room or name a local folder that has it"
        )


def check_disk(config: Config) -> None:
    """Raise UserError, with the arithmetic, where the run does not fit on the disk of `run.dir`.

    What its folder already holds counts as there. A model that is still to be fetched cannot be counted.
    """
    if config.stage not in LEARNING or not _countable(config):
        return
    folder = run_path(config.run)
    terms = disk_terms(config)
    need = sum(t.num_bytes for t in terms)
    held = sum(p.stat().st_size for p in folder.glob("checkpoints/**/*") if p.is_file())
    free = shutil.disk_usage(_existing(folder)).free
    if need > free + held:
        arithmetic = " + ".join(f"{t.name} {t.formula} = {t.num_bytes / GIB:.2f} GiB" for t in terms)
        already = f", {held / GIB:.2f} GiB are held by earlier checkpoints" if held else ""
        raise UserError(
            f"run.dir={config.run.dir}: the run needs {need / GIB:.2f} GiB of disk and {free / GIB:.2f} GiB are free"
            f"{already}: {arithmetic}; make room, lower run.keep_checkpoints or run.keep_best, or name another run.dir"
        )


def disk_lines(config: Config) -> list[str]:
    """Return the plan's block about the disk, empty for stages without checkpoints."""
    if config.stage not in LEARNING:
        return []
    terms = disk_terms(config)
    lines = [f"disk under {config.run.dir} (samples, logs and wandb's files come on top)"]
    lines += [f"  {t.name:<14} {t.num_bytes / GIB:>10.2f} GiB = {t.formula}" for t in terms]
    return [*lines, f"  {'sum':<14} {sum(t.num_bytes for t in terms) / GIB:>10.2f} GiB"]


def num_parameters(key: str, path: str) -> int:
    """Count a model's parameters: from the headers of its safetensors files, else by the shape in its config."""
    return (
        sum(math.prod(s) for s in shapes.values()) if (shapes := _shapes(path)) else shape_of(key, path).num_parameters
    )


def _trained(config: Config, whole: int) -> int:
    """Return how many of the policy's parameters are trained, adapters only with LoRA."""
    lora = config.lora
    if not lora.rank:
        return whole
    shapes = _shapes(config.model.path)
    if not shapes:
        return lora_parameters(shape_of("model.path", config.model.path), lora.rank, lora.target_modules)
    return adapter_parameters(shapes, lora.rank, lora.target_modules)


def adapter_parameters(shapes: dict[str, list[int]], rank: int, target_modules: Sequence[str]) -> int:
    """Count adapters from the shapes of a model's weights: rank x (inputs + outputs) for each layer that has one."""
    names = tuple(f".{module}.weight" for module in target_modules)
    return rank * sum(sum(shape) for name, shape in shapes.items() if name.endswith(names) and len(shape) == 2)


def _checkpoint(config: Config, trained: int) -> tuple[float, str]:
    """Return the bytes of one checkpoint and how they come about."""
    size = ADAMW_BYTES
    note = ""
    if config.learners.backend == "deepspeed":
        # Its files hold the module's weights beside the float32 masters.
        size += WIDTHS[config.learners.dtype]
        note = f", {WIDTHS[config.learners.dtype]} of them the module's"
    found = [f"{trained:,} trained parameters x {size} B{note}"]
    total = trained * size
    if config.stage == "rl" and config.algorithm.uses_critic:
        path = config.model.path if config.critic.path is None else config.critic.path
        values = num_parameters("critic.path", path)
        found.append(f"critic {values:,} x {size} B")
        total += values * size
    if config.stage == "rl" and config.algorithm.uses_reference and config.algorithm.reference_refresh_steps:
        found.append(f"refreshed reference {trained:,} x 4 B")
        total += trained * 4
    return total, " + ".join(found)


def _countable(config: Config) -> bool:
    """Tell whether the models are folders here; a hub name may be fetched only later."""
    paths = [config.model.path]
    if config.stage == "rl" and config.algorithm.uses_critic and config.critic.path is not None:
        paths.append(config.critic.path)
    return all(_shapes(p) for p in paths)


def _shapes(path: str) -> dict[str, list[int]]:
    """Return the shape of every weight in a folder's safetensors files; empty where there are none."""
    found: dict[str, list[int]] = {}
    for file in sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []:
        try:
            with file.open("rb") as stream:
                # The format: eight bytes with the length of the header, which is JSON.
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            found |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
        except (OSError, OverflowError, MemoryError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{file}: no safetensors file ({type(error).__name__}); copy or save it again") from error
    return found


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev
