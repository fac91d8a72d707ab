"""Paths of a config made absolute, and what a submitted Ray job may not do with them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from lwz_ray.config import Config
from lwz_ray.errors import UserError

HUB = "hub:"
PACKAGE = "package://"
_DURABLE = (
    ("run", "dir"),
    ("model", "path"),
    ("critic", "path"),
    ("rewards", "writing", "path"),
    ("rewards", "format", "embedding_path"),
)
_OTHER = (
    ("data", "path"),
    ("eval", "path"),
    ("preference", "path"),
    ("preference", "eval_path"),
    ("curate", "texts_path"),
    ("weights", "staging_dir"),
    ("learners", "deepspeed_config"),
)


def is_submitted_job(environ: Mapping[str, str]) -> bool:
    """Tell whether `ray job submit` started this process: Ray's job manager sets this variable for it."""
    raw = environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return raw is not None and "job_submission_id" in json.loads(raw).get("metadata", {})


def job_folder(cwd: Path) -> Path:
    """Return the temporary copy of the working directory that a job runs in: `…/working_dir_files/_ray_pkg_…`."""
    for folder in (cwd, *cwd.parents):
        if folder.parent.name == "working_dir_files":
            return folder
    return cwd


def absolute_paths(config: Config, cwd: Path, environ: Mapping[str, str]) -> Config:
    """Return the config with absolute paths and `hub:` taken off model names.

    `hub:owner/name` and `package://` stay as they are in data paths, where `lwz_ray.data` reads them. In a model path
    the bare `owner/name` is left, which the loaders take: after this, a model path that is not absolute is a hub name.
    Raises UserError in a submitted job for a durable path that is relative or inside the job's temporary folder.
    """
    tree = config.model_dump()
    in_job = is_submitted_job(environ)
    refused: list[str] = []
    for keys in (*_DURABLE, *_OTHER):
        section = tree
        for key in keys[:-1]:
            section = section[key]
        value = section[keys[-1]]
        if value is None:
            continue
        # Stages that only look into a run folder load no model: theirs may be relative.
        durable = keys in _DURABLE and (keys == ("run", "dir") or config.stage not in ("scale", "report"))
        if value.startswith(HUB):
            section[keys[-1]] = _model_name(".".join(keys), value) if durable else value
        elif not value.startswith(PACKAGE) or durable:
            path = Path(value).expanduser()
            if in_job and durable and _is_lost(path, job_folder(cwd)):
                refused.append(f"{'.'.join(keys)}={value!r}")
            section[keys[-1]] = os.path.normpath(cwd / path)
    if refused:
        raise UserError(
            f"{', '.join(refused)}: relative, or inside the temporary folder of this submitted Ray job ({cwd}), where "
            "git-ignored files do not arrive and what is written is lost; give absolute paths on storage that every "
            "node sees"
        )
    return Config.model_validate(tree)


def _is_lost(path: Path, folder: Path) -> bool:
    return not path.is_absolute() or path.resolve().is_relative_to(folder.resolve())


def _model_name(key: str, value: str) -> str:
    name = value.removeprefix(HUB)
    owner, _, model = name.partition("/")
    if key == "run.dir" or not owner or not model or "/" in model or owner.startswith("."):
        raise UserError(f"{key}={value!r}: write a folder" + ("" if key == "run.dir" else " or hub:owner/name"))
    return name
