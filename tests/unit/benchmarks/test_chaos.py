"""The soak's plan and its tables."""

import pytest

from benchmarks.chaos import kill_rows, kill_table, parse, run_words
from benchmarks.chaos_run import TARGETS, Kill, hit_alone, kill_plan


def test_every_five_kills_hit_each_target_once():
    plan = kill_plan(30, 1)
    fives = [plan[i : i + 5] for i in range(0, 30, 5)]
    assert [sorted(five) for five in fives] == [sorted(TARGETS)] * 6
    assert len({tuple(five) for five in fives}) > 1, "another order each time"
    assert kill_plan(30, 1) == plan != kill_plan(30, 2)
    assert len(kill_plan(7, 1)) == 7
    assert "job" not in {kill_plan(5, seed)[0] for seed in range(40)}


def kill(target: str, noticed_s: float | None, step_s: float | None) -> Kill:
    return Kill(target, 1, "ray::X", 0.0, 3, 1, step_s is not None, noticed_s, step_s)  # type: ignore[arg-type]


def test_rows_hold_medians_of_the_kills_that_were_waited_for():
    kills = [kill("engine", 1.0, 2.0), kill("engine", 3.0, 9.0), kill("engine", None, None), kill("job", None, 50.0)]
    rows = {row["target"]: row for row in kill_rows(kills)}
    assert rows["engine"] == {
        "target": "engine", "kills": 3, "waited": 2, "noticed_s_median": 2.0, "noticed_s_max": 3.0,
        "step_s_median": 5.5, "step_s_max": 9.0,
    }  # fmt: skip
    lines = kill_table(list(rows.values())).splitlines()
    assert lines[3] == "| its engine | 3 | 2.0 (3.0) | 5.5 (9.0) |"
    assert lines[6] == "| whole job | 1 | – | 50.0 (50.0) |"


def test_a_loss_is_its_own_unless_an_earlier_kill_may_have_led_to_it():
    waited, rollout, reward = kill("rollout", 1.0, 2.0), kill("rollout", None, None), kill("reward", None, None)
    assert hit_alone("engine", [])
    assert hit_alone("engine", [rollout, waited])
    assert not hit_alone("engine", [waited, rollout])
    assert not hit_alone("engine", [waited, rollout, reward])
    assert hit_alone("learner", [rollout, reward])


def test_options_and_words(tmp_path):
    with pytest.raises(SystemExit):
        parse(["--kills", "0"])
    options = parse(["--kills", "10", "actors.replicas=3"])
    assert (options.kills, options.steps, options.words) == (10, 80, ["actors.replicas=3"])
    words = run_words(tmp_path, tmp_path / "runs" / "soaked", 80, options.words)
    assert words[-1] == "actors.replicas=3" and "steps=80" in words
    assert f"run.dir={tmp_path / 'runs'}" in words and "run.name=soaked" in words
