"""What became of a pipeline's stages, read from their run folders alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from launch.files import read_json


def summary_of(folder: Path) -> dict[str, Any] | None:
    """Return a run's summary; None where its last job has not ended."""
    path = folder / "summary.json"
    return read_json(path) if path.is_file() else None


def has_completed(folder: Path) -> bool:
    """Say whether the run of a folder came to its end."""
    summary = summary_of(folder)
    return summary is not None and summary["status"] == "completed"


def stage_rows(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return name, stage, status and folder of each stage, in order; of one that has ended its summary's numbers too.

    folder: the pipeline's own. status: that of the stage's summary; `begun` where it has none, `not_begun` where it
    has no run folder. wall_s is the time of its last job.
    """
    found = []
    for name in names:
        path, summary = folder / name, summary_of(folder / name)
        row: dict[str, Any] = {"name": name, "stage": None, "status": "not_begun", "folder": str(path)}
        if (path / "config.yaml").is_file():
            config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
            row |= {"stage": config["stage"], "status": "begun"}
        if summary is not None:
            row |= {key: summary[key] for key in ("status", "wall_s", "steps", "tokens", "error")}
        found.append(row)
    return found
