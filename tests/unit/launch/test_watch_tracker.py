"""The watch warns once a limit and keeps count."""

from pathlib import Path

from launch.compose import compose
from launch.files import iter_json_lines
from launch.run_folder import RunFolder
from launch.watch_tracker import WatchTracker


def test_one_warning_a_limit_and_a_count_of_steps(tmp_path: Path) -> None:
    config = compose([f"run.dir={tmp_path}", "run.name=watched", "watch.min_distinct_2=0.6"])
    folder = RunFolder.open(config, ["test"], {})
    tracker = WatchTracker(config, folder)
    for step, value in enumerate([0.9, 0.5, 0.3, 0.4], start=1):
        tracker.log_step({"step": step, "rollout/distinct_2": value})
    assert tracker.counts == {"rollout/distinct_2": {"steps": 3.0, "first_step": 2, "worst": 0.3, "limit": 0.6}}
    lines = list(iter_json_lines(folder.warnings))
    assert [line["source"] for line in lines] == ["watch"]
    assert lines[0]["message"].startswith("step 2: ") and "rollout/distinct_2 0.500, limit 0.6" in lines[0]["message"]


def test_engine_and_learner_that_disagree_are_told_of_once(tmp_path: Path) -> None:
    config = compose([f"run.dir={tmp_path}", "run.name=apart", "algorithm.mismatch_warning=0.2"])
    folder = RunFolder.open(config, ["test"], {})
    tracker = WatchTracker(config, folder)
    for step, value in enumerate([0.02, 0.2, 0.3, 0.25, 0.4], start=1):
        tracker.log_step({"step": step, "train/mismatch": value})
    messages = [line["message"] for line in iter_json_lines(folder.warnings)]
    assert messages == ["step 3: engine and learner disagree about what was sampled: train/mismatch 0.300, limit 0.2"]
    assert tracker.counts["train/mismatch"] == {"steps": 3.0, "first_step": 3, "worst": 0.4, "limit": 0.2}
