"""The long-sample bench's own parts: its rows, its verdict, the fit, and its reading of resident memory."""

from typing import Any

import pytest

from benchmarks.learner import attention_cost, cost_text, rows_of, table, verdict
from benchmarks.memory_reading import peak_bytes, settle

GIB = 2**30


def point(system: str, tokens: int, gib: float, seconds: float) -> dict[str, Any]:
    return {"system": system, "layers": 30, "tokens": tokens, "bytes": gib * GIB, "seconds": seconds}


POINTS = [
    point("ours", 4096, 1.0, 41.0),
    point("plain", 4096, 7.0, 50.0),
    point("ours", 8192, 1.75, 115.0),
    point("plain", 8192, 14.0, 120.0),
    point("ours", 16384, 3.25, 360.0),
    {"system": "plain", "layers": 30, "tokens": 16384, "not_run": "needs about 28.0 GiB above the model"},
]


def test_rows_tell_ratio_and_growth_and_what_was_not_run() -> None:
    lines = table(rows_of(POINTS)).splitlines()
    assert lines[2] == "| 30 | 4,096 | 7.00 | 1.00 | 7.0 | 50.0 | 41.0 | – |"
    assert lines[3] == "| 30 | 8,192 | 14.00 | 1.75 | 8.0 | 120.0 | 115.0 | 0.188 |"  # 0.75 GiB for 4 x 1,024 tokens
    assert lines[4] == "| 30 | 16,384 | – | 3.25 | – | – | 360.0 | 0.188 |"


@pytest.mark.parametrize(("ours", "said"), [(2.0, "1/7.0, met"), (2.01, "1/7.0, NOT met"), (None, "not judged")])
def test_the_target_is_a_seventh_at_8192_tokens(ours: float | None, said: str) -> None:
    mine = {"not_run": "took long"} if ours is None else {"bytes": ours * GIB, "seconds": 1.0}
    found = [{"system": "ours", "layers": 30, "tokens": 8192, **mine}, point("plain", 8192, 14.0, 120.0)]
    assert said in verdict(rows_of(found), 30)


def test_the_cost_of_attention_is_fitted() -> None:
    # 5 ms a token and 2 us a pair.
    points = [(n, 0.005 * n + 2e-6 * n * (n + 1) / 2) for n in (1024, 2048, 4096)]
    assert attention_cost(points) == pytest.approx((0.005, 2e-6))
    rows = [{"layers": 30, "tokens": n, "ours_s": s} for n, s in points]
    assert cost_text(rows).endswith("2000.00 ns a query-key pair: learners.attention_cost=0.0004")
    assert "needs two lengths, 1 ran" in cost_text(rows[:1])


def test_the_peak_is_seen_after_it_is_over() -> None:
    before = settle()
    bytearray(256 * 2**20)
    assert 250 * 2**20 < peak_bytes() - before < 300 * 2**20
    assert settle() - before < 20 * 2**20
    assert peak_bytes() - before < 20 * 2**20
