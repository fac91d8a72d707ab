"""Read a run folder into what the report shows; nothing else is consulted."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from launch.files import iter_json_lines, read_json, read_yaml
from lwz_ray.errors import UserError

EVAL_SPLITS = ("eval_before", "eval_after")


@dataclass(frozen=True, slots=True)
class SamplePair:
    """The first sample of one held-out prompt before training and after it; either may be missing."""

    prompt: dict[str, Any]
    """The line that the prompt's text, language and range are read from."""
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class RunData:
    """The content of a run folder."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    steps: list[dict[str, Any]]
    """One dict a step that survives, by step; lines of one step are merged."""
    num_superseded: int
    """Lines of metrics that a resume replaced."""
    pairs: list[SamplePair]
    warnings: list[dict[str, Any]]
    summary: dict[str, Any] | None
    """None: the attempt is running, or was killed before it could write one."""


def read_run(path: Path, num_samples: int) -> RunData:
    """Return what the folder holds, with the samples of the first `num_samples` held-out prompts.

    Raises UserError where the folder is no run's.
    """
    for name in ("config.yaml", "manifest.json"):
        if not (path / name).is_file():
            raise UserError(f"{path} holds no {name}: run.dir and run.name must name the folder of a run")
    manifest = read_json(path / "manifest.json")
    lines = list(iter_json_lines(path / "metrics.jsonl"))
    living = sorted((line for line in lines if not line.get("superseded")), key=lambda line: line["step"])
    steps: list[dict[str, Any]] = []
    for _, same in groupby(living, key=lambda line: line["step"]):
        merged: dict[str, Any] = {}
        for line in same:
            merged.update(line)
        steps.append(merged)
    summary_path = path / "summary.json"
    return RunData(
        path=path,
        config=read_yaml(path / "config.yaml"),
        manifest=manifest,
        steps=steps,
        num_superseded=len(lines) - len(living),
        pairs=first_pairs(path / "samples.jsonl", num_samples),
        warnings=list(iter_json_lines(path / "warnings.jsonl")),
        summary=read_json(summary_path) if summary_path.is_file() else None,
    )


def first_pairs(path: Path, num_samples: int) -> list[SamplePair]:
    """Return the first prompts by their place in the source, each with its sample 0: chosen by order, never by look."""
    found: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for line in iter_json_lines(path):
        if line["split"] not in EVAL_SPLITS or line["sample_index"] != 0 or line.get("superseded"):
            continue
        found.setdefault((line["prompt_index"], line["prompt_id"]), {})[line["split"]] = line
        if len(found) > num_samples:
            del found[max(found)]
    return [
        SamplePair(next(iter(splits.values())), splits.get("eval_before"), splits.get("eval_after"))
        for _, splits in sorted(found.items())
    ]
