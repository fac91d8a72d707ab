"""The report and the last table of supervised stages, with numbers computed from scores given here."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from launch.compose import compose
from launch.console_supervised import SupervisedTable
from launch.files import read_json
from launch.report import write_report
from launch.report_supervised import supervised_headline, supervised_warnings
from launch.run_folder import RunFolder
from launch.summary import GroupCounts, RunSummary
from lwz_ray.perplexity import HeldOutScores, compare, measure

NAMES = ("books", "plans")


def scores(loss: float, plans: float) -> HeldOutScores:
    nll = np.asarray([loss * 100, loss * 100, plans * 50])
    return HeldOutScores(nll, np.asarray([100, 100, 50]), np.asarray([0, 0, 1]), np.arange(3))


def measured(after: HeldOutScores) -> dict[str, Any]:
    before = scores(3.0, 2.0)
    counts = {"books": {"documents": 30, "bad_rows": 2, "epochs": 1.25, "given_share": None}}
    return {
        "foreseen_steps": 2,
        "max_tokens": None,
        "data": counts,
        "before": measure(before, NAMES, 100, 1),
        "after": measure(after, NAMES, 100, 1),
        "difference": compare(before, after, NAMES, 100, 1),
    }


def summary_of(found: dict[str, Any]) -> dict[str, Any]:
    return RunSummary(
        stage="pretrain", status="completed", steps=2, skipped_steps=0, policy_version=2, wall_s=5.0,
        groups=GroupCounts(9, 9, {}, 0), tokens_generated=0, tokens_trained=4000, active_rewards=(),
        measured={"pretrain": found},
    ).as_dict()  # fmt: skip


def test_the_page_shows_perplexity_and_sources(tmp_path: Path):
    config = compose(["run=pretrain_demo", f"run.dir={tmp_path}"])
    folder = RunFolder.open(config, command=["main", "run=pretrain_demo"], environ={})
    for step, loss in ((1, 3.1), (2, 2.9)):
        folder.append_metrics({
            "step": step, "policy_version": step, "train/loss": loss, "train/lr": 1e-5 / step, "validation/loss": loss,
            "source/books_loss": loss, "source/books_tokens": 1500.0, "source/plans_tokens": 500.0,
        })  # fmt: skip
    found = summary_of(measured(scores(2.9, 2.1)))
    (folder.path / "summary.json").write_text(json.dumps(found))
    page = write_report(folder.path).read_text(encoding="utf-8")
    for words in (
        "On held-out texts the perplexity went, within what chance explains, from 16.44 to 15.49: -0.0600 nats",
        "Held-out perplexity", "Loss by source", "Held-out loss", "Learning rate", "Sequences a step",
        "<td>75.000%</td>", "<td>3.1000</td>", "<td>books: documents</td>",
        "Held-out texts of plans are predicted worse than before: +0.1000 nats a token",
        "Rows of books left out as malformed: 2.",
    ):  # fmt: skip
        assert words in page, words
    assert "The accounting of groups" not in page and "There is no evaluation before and after" not in page


def test_headline_and_warnings_follow_the_interval():
    fell = summary_of(measured(scores(2.9, 1.9)))
    assert (supervised_headline(fell) or "").startswith(
        "On held-out texts the perplexity fell from 16.44 to 14.88: -0.1000 nats a token, 95% interval -0.1000 to "
    )
    assert supervised_warnings(fell) == [
        "Fewer than 5 held-out texts of books, plans: the interval says little of other texts.",
        "Rows of books left out as malformed: 2.",
    ]
    pairs = {"read": 9, "bad_rows": 3, "eval_path": {"bad_rows": 1}}
    told = supervised_warnings({"stage": "sft", "sft": {**fell["pretrain"], "data": pairs}})
    assert told[1:] == ["Rows of sft left out as malformed: 3.", "Rows of eval_path left out as malformed: 1."]
    unmeasured = {"not_measured": "stage=pretrain was given no held-out texts"}
    empty = summary_of({"foreseen_steps": 2, "max_tokens": None, "data": {}, "before": unmeasured})
    assert supervised_headline(empty) is None
    assert supervised_warnings(empty) == [
        "Held-out perplexity was not measured: stage=pretrain was given no held-out texts. Nothing here says what was "
        "learned."
    ]
    assert supervised_headline({"stage": "rl"}) is None


def test_the_last_table_says_the_same(tmp_path: Path):
    out = io.StringIO()
    shown = summary_of(measured(scores(2.9, 2.1)))
    SupervisedTable(Console(file=out, width=120)).show(shown, tmp_path, tmp_path / "report.html")
    text = out.getvalue()
    assert "all held-out texts" in text and "16.44" in text and "15.49" in text and "-0.0600" in text
    assert "status: completed, 2 steps, 4,000 tokens trained" in text
    again = io.StringIO()
    nothing = summary_of({"foreseen_steps": 2, "max_tokens": None, "data": {}})
    SupervisedTable(Console(file=again, width=120)).show(nothing, tmp_path, tmp_path / "report.html")
    assert again.getvalue().startswith("status: completed")


def test_a_page_without_a_summary_is_written(tmp_path: Path):
    config = compose(["run=sft_demo", f"run.dir={tmp_path}"])
    folder = RunFolder.open(config, command=["main", "run=sft_demo"], environ={})
    assert "There is no summary" in write_report(folder.path).read_text(encoding="utf-8")
    assert not (folder.path / "summary.json").exists()
    assert read_json(folder.manifest)["name"] == "sft_demo"
