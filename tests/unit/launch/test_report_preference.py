"""The report of stage=train_rm, from a summary whose numbers are computed from scores given here."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from launch.console_preference import PreferenceTable
from launch.files import read_json
from launch.pair_lines import pair_line
from launch.report import write_report
from launch.report_preference import preference_headline, preference_warnings
from launch.run_folder import RunFolder
from launch.summary import GroupCounts, RunSummary
from lwz_ray.config import Config
from lwz_ray.preference_eval import PairScores, evaluate_pairs, length_baseline
from lwz_ray.preferences import PreferencePair

KINDS = ["cut", "repeat"] * 6
SOURCES = [f"s{i // 2}" for i in range(12)]
CHOSEN_WORDS = np.full(12, 50)
REJECTED_WORDS = np.array([30, 70] * 6)
LIFTED = ("by_kind", "calibration", "by_length_difference", "length_correlation", "matched")


def measured(gaps: list[float]) -> dict[str, Any]:
    """Return what the stage writes as `preference`, of 12 pairs with these gaps."""
    scores = PairScores(np.array(gaps), np.zeros(12), CHOSEN_WORDS, REJECTED_WORDS, SOURCES, KINDS)
    after = evaluate_pairs(scores, 0.1, 200, 1)
    counts = {"pairs": 13, "sources": 6, "kept": 12, "dropped_too_long": 1, "left_out": 0}
    return {
        "rows": {"read": 27, "kept": 26, "bad_rows": 1},
        "train": {**counts, "tokens": 900, "consumed": 24, "epochs": 2.0},
        "held_out": {**counts, "dropped_too_long": 0, "left_out": 1},
        "before": {"num_pairs": 12, "accuracy": {"mean": 0.5, "low": 0.3, "high": 0.7}},
        **{name: after.pop(name) for name in LIFTED},
        "after": after,
        "baseline_length": length_baseline(scores, (np.array([9, 9]), np.array([4, 2])), 200, 1),
    }


def write_run(config: Config, gaps: list[float]) -> tuple[RunFolder, dict[str, Any]]:
    folder = RunFolder.open(config, command=["main", "stage=train_rm"], environ={})
    folder.append_metrics({"step": 1, "policy_version": 1, "train/loss": 0.7, "train/pair_accuracy": 0.5})
    folder.append_metrics({"step": 2, "policy_version": 2, "train/loss": 0.4, "train/pair_accuracy": 0.9})
    for i, gap in enumerate(gaps):
        pair = PreferencePair(f"Request <{i}>", "good", f"bad text {i} & more", SOURCES[i], 0.0, KINDS[i])
        folder.append_lines([pair_line(pair, (gap, 0.0), (50, int(REJECTED_WORDS[i])), i, 2, 2)])
    summary = RunSummary(
        stage="train_rm", status="completed", steps=2, skipped_steps=0, policy_version=2, wall_s=5.0,
        groups=GroupCounts(24, 24, {}, 0), tokens_generated=0, tokens_trained=900, active_rewards=(),
        measured={"preference": measured(gaps)},
    )  # fmt: skip
    folder.write_summary(summary)
    return folder, read_json(folder.summary)


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(stage="train_rm")


GOOD = [2.0] * 11 + [-1.0]
LENGTH_ONLY = [2.0, -2.0] * 6
"""Right where the chosen text is longer (cut), wrong where it is shorter (repeat)."""


def test_the_page_shows_every_table(config: Config):
    folder, _ = write_run(config, GOOD)
    page = write_report(folder.path).read_text(encoding="utf-8")
    for title in ("Held-out pairwise accuracy", "Accuracy by length difference", "Score and length", "Calibration",
                  "What it gets most wrong", "Pairs of a step told apart"):  # fmt: skip
        assert title in page, title
    # Eleven of twelve right: the one wrong pair is shown, escaped; the right ones are not.
    assert "bad text 11 &amp; more" in page
    assert "bad text 10" not in page
    assert "Request &lt;11&gt;" in page
    assert "Pairs a step" in page
    assert "Samples a prompt" not in page
    assert "Accounting of groups" not in page


def test_the_headline_names_the_worst_kind_and_length_alone(config: Config):
    _, summary = write_run(config, GOOD)
    headline = preference_headline(summary)
    assert headline is not None
    assert headline.startswith("On 12 held-out pairs the chosen text scores higher in 91.7%, averaged over kinds (95% ")
    assert headline.endswith("length alone reaches 50.0%. The worst kind is repeat: 83.3%.")
    assert preference_headline({"stage": "rl"}) is None


def test_a_good_model_raises_only_the_count(config: Config):
    _, summary = write_run(config, [2.0] * 12)
    assert preference_warnings(summary, 0.8) == ["Pairs left out because a text was over model.max_length_tokens: 1."]


def test_a_model_that_only_counts_words_is_called_out(config: Config):
    _, summary = write_run(config, LENGTH_ONLY)
    found = preference_warnings(summary, 0.8)
    assert found[0].startswith("The reward model is not clearly better than length alone: 0.500 over kinds")
    assert found[1] == "Kinds of pairs that it does not clearly tell apart: repeat."
    assert found[2] == "Its preferences follow the difference in length (rank correlation +1.00)."


def test_a_run_that_ended_early_has_a_page_too(config: Config, tmp_path: Path):
    folder = RunFolder.open(config, command=["main"], environ={})
    summary = RunSummary(
        stage="train_rm", status="failed", steps=0, skipped_steps=0, policy_version=0, wall_s=1.0,
        groups=GroupCounts(0, 0, {}, 0), tokens_generated=0, tokens_trained=0, active_rewards=(), error="no room",
        measured={"preference": {"rows": {}}},
    )  # fmt: skip
    folder.write_summary(summary)
    page = write_report(folder.path).read_text(encoding="utf-8")
    assert "The run failed: no room" in page
    assert "Held-out pairwise accuracy" not in page


def test_the_console_table_puts_length_beside_each_kind(config: Config):
    _, summary = write_run(config, GOOD)
    console = Console(width=100, record=True, file=io.StringIO())
    PreferenceTable(console).show(summary, Path("/runs/x"), Path("/runs/x/report.html"))
    text = console.export_text()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert [(r[0], r[1], r[2], r[4]) for r in rows] == [
        ("all pairs", "12", "0.917", "0.500"), ("mean over kinds", "12", "0.917", "0.500"),
        ("repeat", "6", "0.833", "0.000"), ("cut", "6", "1.000", "1.000"),
    ]  # fmt: skip
    assert "status: completed, 2 steps" in text


def test_lines_of_an_earlier_final_scoring_are_marked(config: Config):
    folder, _ = write_run(config, GOOD)
    again = RunFolder(folder.path, attempt=2, environ={})
    assert again.mark_superseded(2) == 12
    assert "“longer wins”" in write_report(folder.path).read_text(encoding="utf-8")
