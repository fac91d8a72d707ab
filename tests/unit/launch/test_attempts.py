"""Attempts in one run folder, by another driver or within a job: what each replaces stays, marked."""

import yaml

from launch.files import read_json
from launch.run_folder import RunFolder
from tests.unit.launch.test_run_folder import lines, summary


def test_resume_marks_what_it_replaces(make_config, make_sample):
    first = RunFolder.open(make_config(run={"resume": "auto"}), environ={})
    for step in (1, 2, 3):
        first.append_metrics({"step": step, "train/loss": float(step)})
        first.append_samples([make_sample()], [0.0], step, "train")
    first.append_samples([make_sample()], [], 0, "eval_before")
    first.append_samples([make_sample()], [], 2, "eval_after")
    first.write_summary(summary())
    with first.metrics.open("a") as file:
        file.write('{"step": 4, "train/lo')
    second = RunFolder.open(make_config(run={"resume": "auto"}, steps=30), environ={})
    assert second.attempt == 2
    assert not second.summary.exists()
    assert (second.path / "summary.attempt-1.json").exists()
    assert yaml.safe_load((second.path / "config.attempt-1.yaml").read_text())["steps"] == 20
    assert second.mark_superseded(2) == 3
    second.append_metrics({"step": 3, "train/loss": 3.5})
    found = [(m["step"], m["attempt"], m.get("superseded", False)) for m in lines(second.metrics)]
    assert found == [(1, 1, False), (2, 1, False), (3, 1, True), (3, 2, False)]
    marked = [(s["split"], s["step"]) for s in lines(second.samples) if s.get("superseded")]
    assert marked == [("train", 3), ("eval_after", 2)]
    (warning,) = lines(second.warnings)
    assert warning["message"] == "removed a last line of metrics.jsonl that an earlier attempt left incomplete"
    manifest = read_json(second.manifest)
    assert manifest["attempt"] == 2
    assert manifest["resumed_from_step"] == 2
    assert [a["attempt"] for a in manifest["earlier_attempts"]] == [1]
    third = RunFolder.open(make_config(run={"resume": "auto"}), environ={})
    assert third.mark_superseded(None) == 6
    assert [a["attempt"] for a in read_json(third.manifest)["earlier_attempts"]] == [1, 2]


def test_another_attempt_in_the_same_job(make_config, make_sample):
    folder = RunFolder.open(make_config(), command=["python", "x"], environ={"A_TOKEN": "canary0123456789"})
    for step in (1, 2, 3):
        folder.append_metrics({"step": step})
        folder.append_samples([make_sample()], [0.0], step, "train")
    folder.append_samples([make_sample()], [0.0], 4, "train")  # the learner was lost before the step's metrics
    folder.next_attempt("learner rank 1 was lost: canary0123456789")
    assert (folder.attempt, folder.restarts, folder.lost_steps) == (2, 1, 0)
    assert folder.mark_superseded(2, reached=4) == 3
    folder.append_metrics({"step": 3})
    folder.warn("probe", "one is off")
    folder.next_attempt("and again")
    assert folder.mark_superseded(0, reached=3) == 5
    assert (folder.attempt, folder.restarts, folder.lost_steps) == (3, 2, 5)
    found = [(m["step"], m["attempt"], m.get("superseded", False)) for m in lines(folder.metrics)]
    assert found == [(1, 1, True), (2, 1, True), (3, 1, True), (3, 2, True)]
    assert lines(folder.warnings)[0]["attempt"] == 2
    manifest = read_json(folder.manifest)
    assert (manifest["name"], manifest["attempt"], manifest["reason"]) == ("trial", 3, "and again")
    assert (manifest["resumed_from_step"], manifest["lost_steps"]) == (0, 3)
    first, second = manifest["earlier_attempts"]
    assert "reason" not in first and "resumed_from_step" not in first
    assert second["reason"] == "learner rank 1 was lost: [hidden]"
    assert (second["attempt"], second["resumed_from_step"], second["lost_steps"]) == (2, 2, 2)
    assert first["command"] == second["command"] == manifest["command"] == ["python", "x"]
    later = RunFolder.open(make_config(run={"resume": "auto"}), environ={})
    assert (later.attempt, later.restarts) == (4, 2)  # a new job is no restart
    later.append_metrics({"step": 1})
    assert later.mark_superseded(0) == 0
    assert (later.restarts, later.lost_steps) == (2, 5)
