"""Paths of a config made absolute, and what a submitted Ray job may not do with them."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.stage_table import LOOKING
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
    ("evaluate", "judge_path"),
)
_OTHER = (
    ("data", "path"),
    ("eval", "path"),
    ("preference", "path"),
    ("preference", "eval_path"),
    ("curate", "texts_path"),
    ("curate", "chat_logs", "paths", "*"),
    ("curate", "chat_logs", "benchmarks", "*"),
    ("curate", "plans", "run"),
    ("corpus", "sources", "*", "path"),
    ("corpus", "eval_path"),
    ("sft", "path"),
    ("sft", "eval_path"),
    ("benchmark", "path"),
    ("benchmark", "baselines", "*"),
    ("benchmark", "requirements"),
    ("evaluate", "texts_path"),
    ("weights", "staging_dir"),
    ("learners", "deepspeed_config"),
)
"""Keys that hold paths; `*` stands for every entry of a map or a list."""


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
        # Stages that only look into a run folder load no model: theirs may be relative.
        durable = keys in _DURABLE and (keys == ("run", "dir") or config.stage not in LOOKING)
        for name, section, last in _entries(tree, keys):
            value = section[last]
            if value is None:
                continue
            if value.startswith(HUB):
                section[last] = _model_name(name, value) if durable else value
            elif not value.startswith(PACKAGE) or durable:
                path = Path(value).expanduser()
                if in_job and durable and _is_lost(path, job_folder(cwd)):
                    refused.append(f"{name}={value!r}")
                section[last] = os.path.normpath(cwd / path)
    if refused:
        raise UserError(
            f"{', '.join(refused)}: relative, or inside the temporary folder of this submitted Ray job ({cwd}), where "
            "git-ignored files do not arrive and what is written is lost; give absolute paths on storage that every "
            "node sees"
        )
    return Config.model_validate(tree)


def _entries(tree: Any, keys: Sequence[str], name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each place that the keys name: its dotted name, the map or list that holds it, and its key there."""
    head, *rest = keys
    found = (list(tree) if isinstance(tree, Mapping) else range(len(tree))) if head == "*" else [head]
    for key in found:
        dotted = f"{name}.{key}" if name else str(key)
        if rest:
            yield from _entries(tree[key], rest, dotted)
        else:
            yield dotted, tree, key


def _is_lost(path: Path, folder: Path) -> bool:
    return not path.is_absolute() or path.resolve().is_relative_to(folder.resolve())


def _model_name(key: str, value: str) -> str:
    name = value.removeprefix(HUB)
    owner, _, model = name.partition("/")
    if key == "run.dir" or not owner or not model or "/" in model or owner.startswith("."):
        raise UserError(f"{key}={value!r}: write a folder" + ("" if key == "run.dir" else " or hub:owner/name"))
    return name
