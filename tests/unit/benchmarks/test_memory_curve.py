"""The fit that says whether memory is flat, on curves whose answer is known."""

import random
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from benchmarks.memory_curve import ROOMS, curve, parse, rows_of, sparkline, table, theil_sen
from lwz_ray.errors import InfrastructureError


def lines(growth: float, steps: int = 100) -> list[dict[str, Any]]:
    """Return a run that starts high, settles at 1,000 MiB after 40 steps and grows by `growth` MiB a step from there.

    Every tenth step is a peak of another 300 MiB, every other one of noise.
    """
    rng = random.Random(5)
    return [
        {"step": s}
        | {
            f"memory/{room}_mib": (1500.0 if s <= 40 else 1000.0 + growth * (s - 41))
            + (300.0 if s % 10 == 0 else rng.uniform(-2, 2))
            for room in ROOMS
        }
        for s in range(1, steps + 1)
    ]


def test_peaks_and_warm_up_do_not_count():
    for row in rows_of(lines(0.0), 40):
        assert row["flat"] and abs(row["change"]) < 0.005 and row["ratio"] == pytest.approx(1.0, abs=0.005)
        assert row["peak_mib"] == 1300.0 and row["steps"] == 60


def test_growth_is_found():
    (row, *_) = rows_of(lines(2.0), 40)
    # From step 41 to 100 memory grows by 59 * 2 = 118 MiB of 1,000.
    assert not row["flat"] and row["change"] == pytest.approx(0.118, abs=0.004)
    assert row["mib_per_100_steps"] == pytest.approx(200.0, rel=0.02)
    assert "| driver | 1,0" in table([row]) and table([row]).endswith("% | no |")
    assert not rows_of(lines(-2.0), 40)[0]["flat"]


def test_a_room_without_numbers_is_no_flat_one():
    found = lines(0.0)
    for line in found[:70]:
        del line["memory/rewards_mib"]
    with pytest.raises(InfrastructureError, match="memory/rewards_mib: 30 steps after 40 of warm-up, 40 are needed"):
        rows_of(found, 40)


def test_too_few_steps_are_refused_before_the_run(capsys: pytest.CaptureFixture[str]):
    assert parse(["--steps", "80"]).steps == 80
    with pytest.raises(SystemExit):
        parse(["--steps", "79"])
    assert "--steps 79 --warm-up 40: 40 steps after warm-up are needed" in capsys.readouterr().err


def test_the_fit_goes_through_the_middle():
    assert theil_sen([1, 2, 3], [5.0, 5.0, 5.0]) == (0.0, 5.0)
    assert sparkline([1.0, 1.0, 1.0]) == "▁▁▁"
    assert len(sparkline([float(i) for i in range(500)])) == 60


def test_curves_are_an_svg_file():
    root = ElementTree.fromstring(curve(lines(2.0)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall("{http://www.w3.org/2000/svg}path")) == len(ROOMS) == 4
