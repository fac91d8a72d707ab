"""What a pipeline remembers of each stage that it began: the settings, and which results of other stages it read.

<run folder>/stages/<name>.json

A completed stage is skipped where both are still the same. Where they are not, or where one that has begun read a
result that is another by now, the pipeline is refused before it starts: it never throws a result away, and never
passes one off as made from other things.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launch.files import read_json, write_json
from launch.pipeline_account import has_completed
from launch.pipeline_stages import Planned, stage_folder
from launch.redaction import redact_command
from launch.run_folder import holds_a_run, run_path
from launch.stage_table import LEARNING, WRITING
from lwz_ray.config import Config
from lwz_ray.errors import UserError

State = Literal["completed", "begun", "new"]
NOT_SETTINGS = ("run", "tracking", "cluster", "dry_run", "failures", "pipeline", "report")
"""What may change between two jobs of one stage: where it runs, who watches and when it gives up, not what it makes."""
_RL = ("rl",)
READ_BY = {
    "actors": WRITING,
    "algorithm": LEARNING,
    "benchmark": ("evaluate",),
    "critic": _RL,
    "data": WRITING,
    "eval": LEARNING,
    "evaluate": ("evaluate",),
    "corpus": ("pretrain",),
    "curate": ("curate",),
    "recipe": ("curate",),
    "generate": ("generate",),
    "group_size": _RL,
    "groups_per_step": _RL,
    "judge": ("rl", "curate", "evaluate"),
    "learners": LEARNING,
    "lora": LEARNING,
    "max_staleness": _RL,
    "on_stale": _RL,
    "optimizer": LEARNING,
    "preference": ("train_rm",),
    "rewards": WRITING,
    "sft": ("sft",),
    "steps": LEARNING,
    "watch": LEARNING,
    "weights": _RL,
}
"""Parts of the config that only these stages read; a change there is none for the others."""


@dataclass(frozen=True, slots=True)
class Record:
    """One stage as it was begun."""

    words: list[str]
    sections: dict[str, str]
    """sha256 of each part of the config."""
    inputs: dict[str, str | None]
    """sha256 of the summary of each stage that it needs; null where that one has not completed."""


def record_of(config: Config, planned: Planned) -> Record:
    """Return the record of a stage as it would begin now."""
    stage = planned.config.stage
    parts = planned.config.model_dump(mode="json").items()
    own = {key: value for key, value in parts if key not in NOT_SETTINGS and stage in READ_BY.get(key, (stage,))}
    if stage == "rl" and planned.config.judge.base_url is None:
        del own["judge"]
    sections = {key: _sha256(value) for key, value in own.items()}
    inputs = {need: _result(stage_folder(config, need)) for need in config.pipeline.needs_of(planned.name)}
    return Record(redact_command(planned.words, os.environ), sections, inputs)


def write_record(config: Config, planned: Planned) -> None:
    """Remember a stage that is about to begin."""
    path = _path(config, planned.name)
    path.parent.mkdir(exist_ok=True)
    write_json(path, asdict(record_of(config, planned)))


def state_of(config: Config, planned: Planned) -> State:
    """Say how far a stage has come; raises UserError as `check_results` does."""
    check_results(config, [planned])
    if has_completed(planned.folder):
        return "completed"
    return "begun" if holds_a_run(planned.folder) else "new"


def check_results(config: Config, stages: Sequence[Planned]) -> None:
    """Raise UserError where stages completed with other settings, or read other results than are there now."""
    found = {planned.name: reason for planned in stages if (reason := _conflict(config, planned)) is not None}
    if found:
        told = "; ".join(f"{name} {reason}" for name, reason in found.items())
        raise UserError(
            f"{run_path(config.run)} holds results that this command would not make: {told}; choose another run.name, "
            "give the settings that they had, or move their folders away to have them made anew"
        )


def _conflict(config: Config, planned: Planned) -> str | None:
    """Return why a stage cannot be taken, or gone on with, as it is; None where it can."""
    completed, path = has_completed(planned.folder), _path(config, planned.name)
    if not completed and not (path.is_file() and holds_a_run(planned.folder)):
        return None
    if not path.is_file():
        return "was not begun by a pipeline"
    kept, now = Record(**read_json(path)), record_of(config, planned)
    changed = [key for key in now.sections if kept.sections.get(key) != now.sections[key]]
    if completed and changed:
        return f"has completed with other settings ({', '.join(changed)})"
    if other := [need for need, result in now.inputs.items() if kept.inputs.get(need) != result]:
        return f"has read an earlier result of {', '.join(other)}"
    return None


def _path(config: Config, name: str) -> Path:
    return run_path(config.run) / "stages" / f"{name}.json"


def _result(folder: Path) -> str | None:
    """Return what tells one result of a stage from the next: each job of a run writes another summary."""
    return hashlib.sha256((folder / "summary.json").read_bytes()).hexdigest() if has_completed(folder) else None


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
