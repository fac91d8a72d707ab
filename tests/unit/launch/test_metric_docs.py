"""The page of metrics knows what the report draws and the console shows."""

import pytest

from launch.console import ConsoleTable
from launch.report_page import CHARTS
from tests.metric_docs import documented_keys, undocumented


def test_the_page_has_rows():
    assert {"rewards/length", "train/mismatch", "weights/pause_s", "groups/in_flight"} <= documented_keys()
    assert {
        "watch/judge_length_correlation",
        "length/upto_100_reward",
        "length/above_8000_samples",
    } <= documented_keys()


def test_every_curve_and_every_row_of_the_table_is_on_the_page():
    drawn = {key for _, _, lines in CHARTS for key, _ in lines}
    shown = {f"eval/{name}" for name, _, _ in ConsoleTable.ROWS}
    assert (drawn | shown) - documented_keys() == set()


def test_an_unknown_key_is_found(tmp_path):
    line = {"step": 1, "attempt": 1, "time": "t", "policy_version": 0, "train/loss": 0.1, "train/new": 1}
    assert undocumented(line) == {"train/new"}
    page = tmp_path / "metrics.md"
    page.write_text("| `a/b` | m | u | h |\n| `a/b` | m | u | h |\n")
    with pytest.raises(ValueError, match=r"lists \['a/b'\] more than once"):
        documented_keys(page)
