"""`stage=report`: a run's report again, or with `report.runs` several evaluations side by side in one."""

import time
from pathlib import Path
from typing import Any

from launch.evaluate_file import read_evaluation
from launch.evaluate_scores import NOT_MEASURED
from launch.files import read_yaml
from launch.report import write_report
from launch.report_side_by_side import side_by_side_headline
from launch.run_folder import RunFolder, holds_a_run, run_path
from launch.stages.lifecycle import leased
from launch.summary import GroupCounts, RunSummary
from lwz_ray.benchmarks.arena_write import rate_together
from lwz_ray.benchmarks.comparing import Evaluation, side_by_side
from lwz_ray.benchmarks.records import Game
from lwz_ray.config import Config
from lwz_ray.errors import UserError


def run(config: Config) -> int:
    """Write the report, print its path, and return 0.

    Raises UserError where a folder is no run's, where the evaluations cannot be compared, and where the run folder of a
    comparison holds a run of another stage.
    """
    if config.report.runs:
        return _compare(config)
    folder = run_path(config.run)
    if not folder.is_dir():
        raise UserError(f"run.name={config.run.name}: there is no run folder {folder}; check run.dir and run.name")
    print(f"report: {write_report(folder)}")
    return 0


def _compare(config: Config) -> int:
    """Put evaluations side by side in the run folder; one that holds an earlier comparison gets the new one."""
    started = time.monotonic()
    found = compare_runs(config, [evaluation_folder(config, given) for given in config.report.runs])
    _check_folder(config)
    with leased(config) as lease:
        folder = RunFolder.open(config, lease=lease)
        folder.write_summary(
            RunSummary(
                stage="report",
                status="completed",
                steps=0,
                skipped_steps=0,
                policy_version=0,
                wall_s=time.monotonic() - started,
                groups=GroupCounts(admitted=0, trained=0, dropped={}, in_flight=0),
                tokens_generated=0,
                tokens_trained=0,
                active_rewards=(),
                measured={"side_by_side": found},
            )
        )
        report = write_report(folder.path)
    if (told := side_by_side_headline({"side_by_side": found})) is not None:
        print(told)
    print(f"report: {report}")
    return 0


def compare_runs(config: Config, folders: list[Path]) -> dict[str, Any]:
    """Return the `side_by_side` part of `summary.json`: what `comparing.side_by_side` says, and about each run.

    Evaluations of arena_write get ratings of one fit over all their games; `remarks` says why where they do not.
    """
    numbers: list[Evaluation] = []
    facts: list[dict[str, Any]] = []
    games: list[list[Game]] = []
    for folder in folders:
        one, told, played = read_evaluation(folder)
        numbers.append(one)
        facts.append(told)
        games.append(played)
    evaluate, seed = config.evaluate, config.seed
    found = side_by_side(numbers, evaluate.bootstrap_resamples, seed)
    runs = [
        {
            "folder": str(folder),
            "written_by": told["texts"]["by"],
            "texts": told["texts"]["written"],
            "judge": told["judge"].get("name") or told["judge"].get(NOT_MEASURED, ""),
            "not_a_result": told["judge"].get("not_a_result"),
        }
        for folder, told in zip(folders, facts, strict=True)
    ]
    remarks = []
    for one, told in zip(numbers, facts, strict=True):
        if not told["requests"]["complete"]:
            remarks.append([one.name, "not the whole benchmark"])
        if reason := told["judge"].get("not_a_result"):
            remarks.append([one.name, f"judged scores are {reason}"])
    rating = None
    if all(games):
        if reason := _unratable(found["names"], facts):
            remarks.append(["Ratings of one fit", f"not taken, {reason}"])
        else:
            ((anchor, points),) = _held(facts)
            rating = rate_together(games, anchor, points, evaluate.bootstrap_resamples, seed)
    return {**found, "runs": runs, "remarks": remarks, "rating": rating}


def _held(facts: list[dict[str, Any]]) -> set[tuple[str, float]]:
    """Return the anchors of evaluations that have ratings, each with what it is held at."""
    ratings = [told["scores"]["rating"] for told in facts]
    return {(one["anchor"], one["anchor_rating"]) for one in ratings if "anchor" in one}


def _unratable(names: list[str], facts: list[dict[str, Any]]) -> str | None:
    """Return why the games of several evaluations of arena_write cannot go into one fit; None where they can.

    A fit tells players apart by their names, so that one name must be one player.
    """
    if len({told["judge"]["identity"] for told in facts}) > 1:
        return "they were judged differently"
    if len(held := _held(facts)) != 1:
        return "their anchors differ" if held else "no pair with the anchor was judged in both orders"
    seen: dict[str, tuple[str, str]] = {}
    for run, told in zip(names, facts, strict=True):
        for baseline, digest in told["baselines"].items():
            first, same = seen.setdefault(baseline, (run, digest))
            if same != digest:
                return f"the baseline {baseline} has other answers in {run} than in {first}"
            if baseline in names:
                return f"{baseline} is a run here and a baseline of {run}: give the run another name"
    return None


def evaluation_folder(config: Config, given: str) -> Path:
    """Return the run folder that an entry of `report.runs` names: a path, or the name of a run in `run.dir`."""
    path = Path(given).expanduser()
    for folder in (path, Path(config.run.dir) / given):
        if folder.is_dir():
            return folder.resolve()
    raise UserError(
        f"report.runs: {given!r} is neither a folder here nor a run in {config.run.dir}; name run folders of "
        "stage=evaluate"
    )


def _check_folder(config: Config) -> None:
    path = run_path(config.run)
    file = path / "config.yaml"
    stage = read_yaml(file).get("stage") if file.is_file() else None
    if holds_a_run(path) or stage not in (None, "report"):
        raise UserError(
            f"{path} holds a run of stage={stage}: give the comparison a run.name of its own, such as run.name=compared"
        )
