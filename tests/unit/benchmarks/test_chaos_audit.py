"""The audit of a soak: a sound run passes, and each planted violation is found by the check that is for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.chaos_audit import CHECKS, Evidence, audit, table
from lwz_ray.errors import UserError

SKIPPED_STEP = 3


def step_row(step: int, attempt: int, version: int, **more: Any) -> dict[str, Any]:
    account = {"admitted": 2.0 * step + 3, "trained": 2.0 * step, "dropped": 1.0, "in_flight": 2.0}
    return {
        "step": step, "attempt": attempt, "policy_version": version, "staleness/max": 1.0,
        "train/skipped": float(step == SKIPPED_STEP), **{f"groups/{k}": v for k, v in account.items()}, **more,
    }  # fmt: skip


def sample_rows(step: int, attempt: int, version: int, **more: Any) -> list[dict[str, Any]]:
    """Return two groups of two samples; version: the one that is trained, one behind is the oldest allowed."""
    oldest = max(0, version - 1)
    return [
        {"step": step, "split": "train", "attempt": attempt, "group_id": 2 * step + g, "sample_index": i,
         "policy_version_min": oldest, "policy_version_max": version, **more}
        for g in range(2) for i in range(2)
    ]  # fmt: skip


def sound() -> dict[str, Any]:
    """Return a run of 4 steps: step 3 skipped, the driver killed after step 3, back to step 2, learners lost once."""
    lost = {"superseded": True}
    return {
        "config": {"steps": 4, "groups_per_step": 2, "group_size": 2, "max_staleness": 1, "actors": {"replicas": 2}},
        "manifest": {
            "attempt": 3, "reason": "learner rank 1 was lost",
            "earlier_attempts": [{"attempt": 1}, {"attempt": 2}],
        },
        "summary": {
            "status": "completed", "steps": 4, "skipped_steps": 1, "policy_version": 3, "error": None,
            "groups": {"admitted": 9, "trained": 8, "dropped": {"no_spread": 1}, "in_flight": 0},
            "failures": {"infrastructure": {"learner_restart": 1, "rollout_lost": 1}, "data": {}, "bug": {}},
            "restarts": 1, "lost_steps": 2,
            "probe": {"tolerance": 0.1, "off": [], "engines": {
                "1": {"mean": 0.001, "max": 0.004, "num_tokens": 64}, "3": {"mean": 0.002, "max": 0.005},
            }},
        },
        "metrics": [
            step_row(1, 1, 1), step_row(2, 1, 2), step_row(3, 1, 2, **lost), step_row(3, 2, 2), step_row(4, 3, 3),
        ],
        "samples": [
            *sample_rows(1, 1, 0), *sample_rows(2, 1, 1), *sample_rows(3, 1, 2, **lost), *sample_rows(3, 2, 2),
            *sample_rows(4, 3, 2),
        ],
        "warnings": [
            {"attempt": 1, "source": "rollout_lost", "message": "a"},
            {"attempt": 2, "source": "rollout_lost", "message": "b"},
            {"attempt": 2, "source": "learner_restart", "message": "c"},
        ],
    }  # fmt: skip


NOTICED = {"rollout_lost": 2, "learner_restart": 1}


def test_a_sound_run_passes():
    verdicts = audit(Evidence(**sound()), NOTICED)
    assert [v.violations for v in verdicts] == [[]] * 10
    lines = table(verdicts).splitlines()
    assert len(lines) == 12 and lines[2] == "| the run completed | yes | 4 steps, 3 attempts |"
    assert lines[3] == "| admitted = trained + dropped + in flight | yes | 9 = 8 + 1 + 0 |"
    assert lines[6].endswith("| yes | 3 = 4 - 1 |")
    assert lines[-1].endswith("| yes | 1 learner_restart, 2 rollout_lost |")


def later_attempt_wins(run: dict[str, Any]) -> None:
    del run["metrics"][2]["superseded"]


def unmark(run: dict[str, Any]) -> None:
    for row in run["samples"][8:12]:
        del row["superseded"]


def same_group_again(run: dict[str, Any]) -> None:
    for row in run["samples"][-2:]:
        row["group_id"] = 2


def move(run: dict[str, Any]) -> None:
    run["metrics"][3], run["metrics"][4] = run["metrics"][4], run["metrics"][3]


def change(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets the value at the path's end; its last part is the value."""

    def plant(run: dict[str, Any]) -> None:
        node: Any = run
        for part in path[:-2]:
            node = node[part]
        node[path[-2]] = path[-1]

    return plant


PLANTED = [
    (change("summary", "status", "failed"), "the run completed", "status failed after 4 of 4 steps: None"),
    (change("config", "steps", 9), "the run completed", "status completed after 4 of 9 steps: None"),
    (
        change("summary", "groups", "in_flight", 2),
        "admitted = trained + dropped + in flight",
        "the summary: admitted 9, trained 8 + dropped 1 + in flight 2",
    ),
    (
        change("metrics", 1, "groups/admitted", 8.0),
        "admitted = trained + dropped + in flight",
        "step 2: admitted 8, trained 4 + dropped 1 + in flight 2",
    ),
    (
        later_attempt_wins,
        "every surviving step once and in order",
        "missing [], more than once [3], beyond the end []",
    ),
    (change("metrics", 4, "step", 5), "every surviving step once and in order", "missing [4], more than once [], be"),
    (move, "every surviving step once and in order", "not in order"),
    (
        change("metrics", 1, "attempt", 3),
        "every surviving step once and in order",
        "a step of an earlier attempt stands behind one of a later attempt",
    ),
    (same_group_again, "no group trained twice, each whole", "group 2 in steps [1, 4]"),
    (unmark, "no group trained twice, each whole", "group 6 with samples [0, 0, 1, 1]"),
    (change("samples", 0, "sample_index", 1), "no group trained twice, each whole", "group 2 with samples [1, 1]"),
    (
        change("summary", "groups", "trained", 9),
        "no group trained twice, each whole",
        "8 groups in samples.jsonl, 9 in the account",
    ),
    (
        change("metrics", 4, "policy_version", 4),
        "policy_version = steps - skipped steps",
        "step 4: policy_version 4 with 1 skipped",
    ),
    (
        change("summary", "policy_version", 4),
        "policy_version = steps - skipped steps",
        "summary: policy_version 4, 4 steps, 1 skipped",
    ),
    (
        change("samples", 5, "policy_version_min", -1),
        "staleness within max_staleness, no later history",
        "group 4 in step 2: 2 behind",
    ),
    (
        change("samples", 5, "policy_version_max", 3),
        "staleness within max_staleness, no later history",
        "group 4 in step 2: written by version 3, trained from 1",
    ),
    (
        change("summary", "probe", "off", ["3"]),
        "every engine on the newest weights, by logprobs",
        "3: {'mean': 0.002, 'max': 0.005}",
    ),
    (
        change("summary", "probe", "engines", {}),
        "every engine on the newest weights, by logprobs",
        "0 engines at the end, actors.replicas=2",
    ),
    (
        change("summary", "probe", None),
        "every engine on the newest weights, by logprobs",
        "the summary holds no probe",
    ),
    (
        change("summary", "lost_steps", 0),
        "lost steps counted",
        "lost_steps 0, but 1 superseded lines over 3 attempts",
    ),
    (
        change("summary", "failures", "infrastructure", {"learner_restart": 1}),
        "failures of the last job as in warnings.jsonl",
        "rollout_lost: 0 in the summary, 1 in warnings.jsonl since attempt 2",
    ),
    (
        change("warnings", 0, "source", "console"),
        "every kill that a supervisor sees counted",
        "rollout_lost: 1 in warnings.jsonl, 2 kills were to be noticed",
    ),
]


@pytest.mark.parametrize(("plant", "check", "said"), PLANTED, ids=[f"{i}-{c[1]}" for i, c in enumerate(PLANTED)])
def test_a_planted_violation_is_found(plant: Callable[[dict[str, Any]], None], check: str, said: str) -> None:
    run = sound()
    plant(run)
    verdicts = {v.name: v for v in audit(Evidence(**run), NOTICED)}
    assert any(v.startswith(said) for v in verdicts[check].violations), verdicts[check].violations
    shown = table(list(verdicts.values()))
    assert f"| {check} | no |" in shown and f"{check}: {said}" in shown


def test_every_check_has_a_planted_violation():
    assert {check for _, check, _ in PLANTED} == {*CHECKS, "every kill that a supervisor sees counted"}


def test_evidence_is_read_from_a_run_folder(tmp_path: Path) -> None:
    run = sound()
    for name in ("manifest", "summary"):
        (tmp_path / f"{name}.json").write_text(json.dumps(run[name]))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run["config"]))
    evaluated = {"step": 0, "split": "eval_before", "attempt": 1, "group_id": 0}
    for name, rows in (("metrics", run["metrics"]), ("samples", [evaluated, *run["samples"]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Evidence.read(tmp_path)
    assert [row["step"] for row in found.steps] == [1, 2, 3, 4]
    assert len(found.trained) == 16 and found.warnings == []
    (tmp_path / "metrics.jsonl").write_text("not json\n" + json.dumps(run["metrics"][0]) + "\n")
    with pytest.raises(UserError, match="line 1"):
        Evidence.read(tmp_path)
