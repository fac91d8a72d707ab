"""Evaluations beside each other on the page: what a judge too small for it scored never stands as a result."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.compose import compose
from launch.evaluate_file import write_evaluation
from launch.evaluate_judge import JudgeFacts
from launch.evaluate_scores import Found
from launch.report_data import RunData
from launch.report_evaluate import evaluate_lines
from launch.report_side_by_side import (
    side_by_side_headline,
    side_by_side_plots,
    side_by_side_sections,
    side_by_side_warnings,
)
from launch.stages.report import compare_runs
from lwz_ray.benchmarks.arena_write import score
from lwz_ray.benchmarks.records import Game
from tests.benchmark_parts import arena, length_benchmark
from tests.unit.launch.evaluate_parts import words_of

SMALL = JudgeFacts("tiny", "engine", 135_000_000, "tiny (not a result)")
LARGE = JudgeFacts("large", "engine", 32_000_000_000, "large")


def interval(mean: float) -> dict[str, Any]:
    return {"all": {"mean": mean, "low": mean, "high": mean, "num_requests": 2}}


def facts_of(judge: JudgeFacts) -> dict[str, Any]:
    return {
        "benchmark": "longbench_write",
        "requests": {"complete": False},
        "texts": {"by": "m", "written": 2},
        "scores": {"s_l": interval(10.0), "s_q": interval(50.0)},
        "measures": {"repetition": interval(0.25)},
        "judge": {"name": judge.name, "identity": judge.identity, "not_a_result": judge.not_a_result},
    }


@pytest.fixture
def compared(tmp_path: Path):
    def run(judge: JudgeFacts) -> dict[str, Any]:
        folders = []
        for name, shift in (("before", 0.0), ("after", 20.0)):
            config = compose(words_of(tmp_path, name))
            numbers = {"s_l": np.array([10.0, 30.0]) + shift, "s_q": np.array([50.0, 50.0]) + shift}
            numbers["s"] = (numbers["s_l"] + numbers["s_q"]) / 2
            folder = tmp_path / f"{judge.name}-{name}"
            folder.mkdir()
            found = Found(per_request=numbers, judged=["s_q", "s"])
            write_evaluation(folder, config, length_benchmark(100, 200), found, facts_of(judge), judge, [])
            folders.append(folder)
        return {"side_by_side": compare_runs(config, folders)}

    return run


def test_a_small_judge_gives_no_headline_and_its_scores_are_marked(compared):
    summary = compared(SMALL)
    assert (side_by_side_headline(summary) or "").startswith("S_L, length of after (40.00) is above that of before")
    run = RunData(Path(), {}, {}, [], 0, [], [], summary)
    means, differences, *_ = side_by_side_sections(run)
    for section in (means, differences):
        assert [row[0] for row in section.rows] == [
            "S_L, length", "S_Q, quality, not a result", "(S_L + S_Q) / 2, not a result",
        ]  # fmt: skip
    assert [plot["title"] for plot in side_by_side_plots(run)][1] == "S_Q, quality, not a result"
    assert side_by_side_warnings(summary) == [
        "before, after: not the whole benchmark.",
        "before, after: judged scores are not a result: the judge has 135M parameters, and one of under 1B cannot "
        "judge writing.",
    ]


def test_a_judge_that_is_large_enough_gives_the_headline(compared):
    assert (side_by_side_headline(compared(LARGE)) or "").startswith("(S_L + S_Q) / 2 of after (55.00) is above")


def test_the_console_marks_what_a_small_judge_said():
    assert evaluate_lines(facts_of(SMALL))[:2] == [
        "S_L, length: 10.00 (95% interval 10.00 to 10.00)",
        "S_Q, quality, not a result: 50.00 (95% interval 50.00 to 50.00)",
    ]
    assert evaluate_lines(facts_of(LARGE))[1].startswith("S_Q, quality: 50.00")
    found = Found(per_request={"s_l": np.ones(1), "s_q": np.ones(1)}, judged=["s_q"])
    assert found.means(but=found.judged) == {"s_l": 1.0}


@pytest.mark.parametrize(
    ("second", "changes", "says"),
    [
        ("after", {}, None),
        ("after", {"north": {"1": "north says more"}}, "the baseline north has other answers in after than in before"),
        ("south", {}, "south is a run here and a baseline of before: give the run another name"),
        ("after", {"anchor": "south"}, "their anchors differ"),
        ("after", {"judge": SMALL}, "they were judged differently"),
    ],
)
def test_one_fit_needs_names_that_are_one_player_each(
    tmp_path: Path, second: str, changes: dict[str, Any], says: str | None
):
    folders = []
    for name, other in (("before", {}), (second, changes)):
        anchor, judge = other.get("anchor", "north"), other.get("judge", LARGE)
        benchmark = arena("1", baselines=["north"] if name == "south" else ["north", "south"])
        benchmark = replace(
            benchmark, baselines={**benchmark.baselines} | {k: v for k, v in other.items() if k == "north"}
        )
        games = [
            Game("1", 0, name, baseline, first, float(first))
            for baseline in benchmark.baselines
            for first in (True, False)
        ]
        scores = score(benchmark, games, anchor, 1000.0, 20, 0)
        facts = {
            **facts_of(judge), "scores": scores.overall, "baselines": benchmark.baseline_digests,
        }  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        found = Found(per_request=scores.per_request, judged=["arena_write"])
        config = compose(words_of(tmp_path, name))
        write_evaluation(folder, config, benchmark, found, facts, judge, list(games))
        folders.append(folder)
    summary = {"side_by_side": compare_runs(config, folders)}
    rating, warnings = summary["side_by_side"]["rating"], side_by_side_warnings(summary)
    if says is None:
        assert {name: one["rating"] for name, one in rating["ratings"].items()} == pytest.approx(
            {"before": 1000.0, "after": 1000.0, "north": 1000.0, "south": 1000.0}
        )
        return
    assert rating is None
    assert f"Ratings of one fit: not taken, {says}." in warnings
