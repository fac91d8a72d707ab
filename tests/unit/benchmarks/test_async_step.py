"""What the asynchronous bench reads out of a run's steps, and what it says of it."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.async_step import Bench, Times, compared, nearest, parse, table, times_of
from lwz_ray.errors import InfrastructureError

QUIET = {"weights/load_s": 0.5, "weights/stage_s": 0.5, "weights/pause_s": 0.2, "weights/stall_share": 0.02}


def row(step: int, step_s: float, wait_s: float, **more: Any) -> dict[str, Any]:
    own = {"step": step, "time/step_s": step_s, "time/wait_s": wait_s, "weights/wait_s": 0.5, "rollout/tokens": 3000.0}
    return own | QUIET | more


def test_synchronous_steps_are_split_into_what_each_side_takes_alone():
    rows = [row(1, 99.0, 50.0), row(2, 99.0, 50.0), *(row(i, 10.0 + i, 5.0) for i in range(3, 6))]
    times = times_of(rows, 0)
    # Steps of 13, 14 and 15 s: 5 of waiting, 0.5 of staging, 0.5 of loading.
    assert (times.step_s, times.wait_s, times.train_s, times.tokens) == (14.0, 5.0, 8.0, 3000.0)


def test_asynchronous_steps_leave_out_the_last_and_count_loads_that_were_late():
    rows = [row(i, 8.0, 1.0, **{"weights/wait_s": 0.0}) for i in range(1, 6)] + [row(6, 2.0, 0.0)]
    times = times_of(rows, 1)
    assert (times.step_s, times.train_s, times.wait_for_load_s) == (8.0, 6.5, 0.0)
    with pytest.raises(InfrastructureError, match="2 measured steps after 2 of warm-up"):
        times_of(rows[:5], 1)


def times(step_s: float, wait_s: float, train_s: float, stall_share: float = 0.02) -> Times:
    return Times(step_s, wait_s, train_s, 0.5, 0.5, 0.2, stall_share, 0.1, 3000.0)


def test_the_target_is_over_the_longer_of_the_two():
    found = compared(times(13.0, 5.0, 7.0), times(8.4, 0.4, 7.0))
    assert found["balance"] == pytest.approx(5 / 7) and found["ratio"] == pytest.approx(1.2)
    assert found["gain"] == pytest.approx(13.0 / 8.4)
    said = table(found)
    assert "| asynchronous / the longer of the two | 1.20 |" in said
    assert said.endswith(
        "target (asynchronous at most 1.15 of the longer): 1.20, NOT met\n"
        "target (stall at most 5% of a step): 2.0%, met"
    )
    met = table(compared(times(13.0, 7.0, 6.0), times(8.0, 0.4, 7.0, 0.051)))
    assert "1.14, met\n" in met and met.endswith("5.1%, NOT met")


def test_without_balance_nothing_is_judged():
    assert "not judged, generation and training are too far apart" in table(
        compared(times(13.0, 2.0, 10.0), times(10.0, 0.4, 10.0))
    )


def test_the_nearest_to_balance_is_chosen():
    assert nearest({16: 0.4, 8: 0.9, 4: 1.05}) == 4
    assert nearest({16: 0.4, 8: 2.0}) == 8


def test_words_name_the_run_and_the_sizes(tmp_path: Path):
    options = parse(["sampling.max_tokens=96", "--steps", "4"])
    assert (options.steps, options.words) == (4, ["sampling.max_tokens=96"])
    for mistake in (["--steps", "2"], ["--max-num-seqs"]):
        with pytest.raises(SystemExit):
            parse(mistake)
    bench = Bench(tmp_path / "model", options.words, tmp_path, 10.0)
    words = bench.words("asynchronous", 7, 1, 8)
    assert words[-1] == "sampling.max_tokens=96"
    assert {"steps=7", "max_staleness=1", "actors.max_num_seqs=8", f"run.dir={tmp_path}"} <= set(words)
    assert len({core for cores in bench.cores.values() for core in cores}) == 2
