"""The tables of `stage=pipeline` in its report: the arms side by side, the stages, and how to run each by itself."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from launch.console import duration_text
from launch.files import read_json
from launch.pipeline_account import stage_rows
from launch.report_data import RunData
from launch.report_sections import Section
from launch.report_side_by_side import side_by_side_sections

SETTINGS: tuple[tuple[str, str], ...] = (
    ("Base model", "model.path"),
    ("Benchmark", "benchmark.name"),
    ("Requests", "benchmark.path"),
    ("Texts a request", "evaluate.samples_per_request"),
    ("Resamples of the bootstrap", "evaluate.bootstrap_resamples"),
    ("Seed", "seed"),
)


def pipeline_headline(summary: Mapping[str, Any] | None) -> str | None:
    """Return how far a pipeline came, as one sentence."""
    found = (summary or {}).get("pipeline")
    if found is None:
        return None
    rest = [row["name"] for row in found["stages"] if row["status"] != "completed"]
    tail = f"; the next is {rest[0]}." if rest else "."
    return f"{len(found['stages']) - len(rest)} of {len(found['stages'])} stages have completed{tail}"


def pipeline_sections(run: RunData) -> list[Section]:
    """Return the arms first, where they were compared; the stages also while the pipeline still runs."""
    compared = side_by_side_sections(run)
    arms = [_arms(run.config["pipeline"]["arms"])] if compared else []
    rows = stage_rows(run.path, run.config["pipeline"]["stages"])
    return [*arms, *compared, _stages(rows), *_commands(run)]


def _arms(arms: Mapping[str, str]) -> Section:
    return Section(
        "Arms", "Each by the name of its evaluation.", ("", "arm"), [(name, arm) for arm, name in arms.items()]
    )


def _stages(rows: Sequence[Mapping[str, Any]]) -> Section:
    cells = [
        (
            f"{number}. {row['name']}",
            row["stage"] or "–",
            row["status"].replace("_", " "),
            *_numbers(row),
            row.get("error") or row["folder"],
        )
        for number, row in enumerate(rows, start=1)
    ]
    note = "In the order in which they run; each has a report of its own in its folder. Times are of the last job."
    columns = ("", "stage", "status", "took", "steps", "tokens generated", "tokens trained", "folder, or what failed")
    return Section("Stages", note, columns, cells)


def _numbers(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "wall_s" not in row:
        return ("–",) * 4
    tokens = row["tokens"]
    return duration_text(row["wall_s"]), str(row["steps"]), f"{tokens['generated']:,}", f"{tokens['trained']:,}"


def _commands(run: RunData) -> list[Section]:
    rows = []
    for name in run.config["pipeline"]["stages"]:
        path = run.path / "stages" / f"{name}.json"
        if path.is_file():
            rows.append((name, shlex.join(["python", "-m", "lwz_ray.main", *read_json(path)["words"]])))
    note = "What each stage that has begun would be as a command of its own."
    return [Section("Commands", note, ("", "command"), rows)] if rows else []
