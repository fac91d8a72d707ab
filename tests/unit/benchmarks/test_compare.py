"""The bench's arithmetic, table and words, on literal numbers; no time is measured."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import differences, settings_text
from benchmarks.our_step import read_steps, run_logged
from benchmarks.results import StepTime, SystemTimes, compared, table_text, target_text
from benchmarks.trl_step import count_completed
from benchmarks.workload import bench_config, bench_words
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError

TABLE = """\
system                 steps  s a step    min    max  generate  train  tokens  s/1,000  step/TRL  token/TRL
-----------------------------------------------------------------------------------------------------------
TRL 1.16.0                 3     60.00  50.00  90.00     45.00  15.00   2,000    33.33     1.000      1.000
ours, synchronous          3     20.00  18.00  25.00      8.00  12.00   2,100    10.00     0.333      0.300
ours, max_staleness 1      3     21.00  20.00  22.00     10.00  11.00   2,100    10.00     0.350      0.300"""


def system(name: str, steps: list[tuple[float, float, int]]) -> SystemTimes:
    """Return times with two warm-up steps in front and one unmeasured step behind, all far off."""
    far = StepTime(1000.0, 500.0, 500.0, 1)
    measured = [StepTime(seconds, generate, seconds - generate, tokens) for seconds, generate, tokens in steps]
    return SystemTimes(name, [far, far, *measured, far], first=2, end=2 + len(steps))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    trl = system("TRL 1.16.0", [(50.0, 40.0, 1800), (90.0, 60.0, 2200), (60.0, 45.0, 2000)])
    synchronous = system("ours, synchronous", [(25.0, 9.0, 2100), (18.0, 6.0, 2000), (20.0, 8.0, 2200)])
    asynchronous = system("ours, max_staleness 1", [(20.0, 9.0, 2100), (21.0, 10.0, 2000), (22.0, 11.0, 2200)])
    return compared(trl, [synchronous, asynchronous])


def test_only_measured_steps_count(rows: list[dict[str, Any]]) -> None:
    trl, ours, _ = rows
    assert (trl["measured_steps"], trl["median_step_s"], trl["min_step_s"], trl["max_step_s"]) == (3, 60.0, 50.0, 90.0)
    # 200 s for 6,000 tokens, and 63 s for 6,300.
    assert trl["s_per_1000_tokens"] == pytest.approx(33.3333, abs=1e-3)
    assert ours["s_per_1000_tokens"] == pytest.approx(10.0)
    assert (ours["step_ratio"], ours["token_ratio"]) == (pytest.approx(20 / 60), pytest.approx(0.3))


def test_median_of_an_even_number_of_steps_lies_between_the_middle_two() -> None:
    times = system("ours", [(10.0, 1.0, 100), (40.0, 1.0, 100), (20.0, 1.0, 100), (30.0, 1.0, 100)])
    assert times.median_s == 25.0


def test_table_sets_the_systems_side_by_side(rows: list[dict[str, Any]]) -> None:
    assert table_text(rows) == TABLE


def test_target_is_said_to_be_met_or_not(rows: list[dict[str, Any]]) -> None:
    assert target_text(rows).splitlines() == [
        "target (at most 1/3), ours, synchronous: 0.333 of TRL's time a step, met; 0.300 of TRL's time a token, met",
        "target (at most 1/3), ours, max_staleness 1: 0.350 of TRL's time a step, NOT met; "
        "0.300 of TRL's time a token, met",
    ]


def test_no_measured_step_or_no_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="no steps 2 to 2 among 3"):
        SystemTimes("ours", [StepTime(1.0)] * 3, first=2, end=2)
    with pytest.raises(ValueError, match="no token was completed in 1 measured steps"):
        _ = SystemTimes("ours", [StepTime(1.0)], first=0, end=1).s_per_1000_tokens


def test_times_survive_their_file(tmp_path: Path) -> None:
    times = SystemTimes("ours", [StepTime(2.5, 1.0, 1.5, 300)], 0, 1, {"lr": 1e-5})
    times.write(tmp_path / "deep" / "ours.json")
    assert SystemTimes.read(tmp_path / "deep" / "ours.json") == times


def metrics_line(step: int, **other: Any) -> dict[str, Any]:
    line = {"step": step, "time/step_s": 10.0 + step, "time/generate_s": 4.0, "time/train_s": 5.0}
    return {**line, "rollout/tokens": 700.0, "train/skipped": 0.0, **other}


def test_our_steps_are_read_from_metrics_lines() -> None:
    evaluation = {"step": 0, "eval/total": 0.5}
    assert read_steps([evaluation, metrics_line(1), metrics_line(2)], 2) == [
        StepTime(11.0, 4.0, 5.0, 700),
        StepTime(12.0, 4.0, 5.0, 700),
    ]


def test_a_missing_or_skipped_step_of_ours_is_an_error() -> None:
    with pytest.raises(InfrastructureError, match=r"no times of the steps \[2\] of 3"):
        read_steps([metrics_line(1), metrics_line(3)], 3)
    with pytest.raises(InfrastructureError, match="step 2 was skipped"):
        read_steps([metrics_line(1), metrics_line(2, **{"train/skipped": 1.0})], 2)


def test_padding_after_the_stop_string_is_not_counted_as_completed() -> None:
    assert count_completed("Hello.</answer>", [7, 8, 9, 2], stop="</answer>", end_id=2) == 3
    assert count_completed("Hello.</answer>", [7, 8, 9], stop="</answer>", end_id=2) == 3
    assert count_completed("Hello.", [7, 8, 2], stop="</answer>", end_id=2) == 3


def test_words_of_the_command_line_win_and_may_be_short() -> None:
    assert bench_words([])[0] == "run=demo_cpu"
    config = bench_config(["model=models/other", "max_tokens=32", "steps=7"])
    # TRL's side has no reward model, and the demo's need not have been trained.
    assert (config.rewards.writing.path, config.rewards.active) == (None, ("length", "format"))
    assert (Path(config.model.path).name, config.sampling.max_tokens, config.steps) == ("other", 32, 7)
    assert (config.groups_per_step, config.group_size, config.data.languages) == (2, 8, ["en"])


def test_a_preset_of_the_command_line_replaces_the_demo() -> None:
    assert "run=demo_cpu" not in bench_words(["run=smoke_cpu"])


def test_too_few_steps_for_a_median_are_refused() -> None:
    with pytest.raises(UserError, match="steps=4: a median needs 3 steps after 2 of warm-up, use 5 or more"):
        bench_config(["steps=4"])


def test_settings_are_printed_and_differences_found() -> None:
    assert settings_text("TRL", {"lr": 1e-5, "stop": "</answer>"}) == "TRL:\n  lr: 1e-05\n  stop: </answer>"
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 9}) == {"b": 2, "c": 3}


def test_a_command_that_fails_or_hangs_is_told_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "command.log"
    with pytest.raises(InfrastructureError, match=r"ended with 3; the end of .*command.log:\nboom"):
        run_logged(["bash", "-c", "echo boom; exit 3"], log, timeout_s=30.0)
    with pytest.raises(WaitTimeoutError, match=r"waited 0.2 s for 30 \(its output: .*command.log\)"):
        run_logged(["sleep", "30"], log, timeout_s=0.2)
