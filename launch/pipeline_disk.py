"""The disk that a pipeline's stages take together: each by itself may fit where all of them do not."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from launch.memory import GIB
from launch.pipeline_account import has_completed
from launch.pipeline_stages import Planned, with_known_models
from launch.preflight import is_hub_name
from launch.preflight_disk import STAGED, disk_terms
from launch.run_folder import run_path
from launch.stage_table import LEARNING
from lwz_ray.config import Config
from lwz_ray.errors import UserError

BESIDE = "while one of them runs"


def disk_needs(config: Config, stages: Sequence[Planned]) -> dict[str, float]:
    """Return the bytes that each stage that trains and has not completed will leave, less what its folder holds.

    Under `BESIDE` stands what is there while one stage runs and goes with it: a checkpoint beside the ones that stay,
    and staged weights; the most of any stage. A model that is still to be fetched cannot be counted; its stage is left
    out.
    """
    needs: dict[str, float] = {}
    beside = 0.0
    for planned, known in with_known_models(config, stages):
        if known.stage not in LEARNING or has_completed(planned.folder) or is_hub_name(known.model.path):
            continue
        held = sum(p.stat().st_size for p in planned.folder.glob("checkpoints/**/*") if p.is_file())
        most = sum(term.num_bytes for term in disk_terms(known))
        kept = (known.run.keep_checkpoints + known.run.keep_best) * known.run.checkpoint_every_steps
        stays = known.model_copy(update={"steps": min(known.steps, kept)})
        left = sum(term.num_bytes for term in disk_terms(stays) if term.name != STAGED)
        beside = max(beside, most - left)
        needs[planned.name] = max(0.0, left - held)
    return needs | {BESIDE: beside} if beside else needs


def disk_text(needs: dict[str, float]) -> str:
    """Return the sum with its arithmetic."""
    parts = " + ".join(f"{name} {size / GIB:.2f}" for name, size in needs.items())
    return f"{sum(needs.values()) / GIB:.2f} GiB = {parts}"


def check_pipeline_disk(config: Config, stages: Sequence[Planned]) -> None:
    """Raise UserError, with the arithmetic, where the stages do not fit on the disk of `run.dir` together."""
    needs, folder = disk_needs(config, stages), run_path(config.run)
    free = shutil.disk_usage(_existing(folder)).free
    if sum(needs.values()) > free:
        raise UserError(
            f"run.dir={config.run.dir}: the pipeline's checkpoints and exports need {disk_text(needs)}, and "
            f"{free / GIB:.2f} GiB are free; make room, lower run.keep_checkpoints, or name another run.dir"
        )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
