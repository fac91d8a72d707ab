"""The scoring bench's own parts: lengths of its texts, and its table."""

from types import SimpleNamespace

import pytest

from benchmarks.scoring import PLAIN, table
from benchmarks.scoring_parts import mixed_texts


def one_token_a_word(text: str, add_special_tokens: bool = True) -> SimpleNamespace:
    return SimpleNamespace(input_ids=text.split())


@pytest.mark.parametrize(("spread", "low", "high"), [("uniform", 700, 850), ("log", 380, 480)])
def test_texts_have_the_lengths_that_were_asked_for(spread: str, low: int, high: int) -> None:
    texts = mixed_texts(one_token_a_word, 400, 50, 1500, spread)
    lengths = [len(text.split()) for text in texts]
    assert 50 <= min(lengths) < 70 and 1400 < max(lengths) <= 1500
    # Means by hand: (50 + 1500) / 2 = 775, and 1450 / ln(30) = 426.
    assert low < sum(lengths) / 400 < high
    assert texts == mixed_texts(one_token_a_word, 400, 50, 1500, spread), "the same for every system"


def test_ratios_are_to_the_plain_loop() -> None:
    plain = {"system": PLAIN, "num_texts": 10, "num_tokens": 5000, "seconds": 20.0, "cpu_seconds": 40.0}
    pool = {**plain, "system": "pool", "seconds": 8.0, "cpu_seconds": 10.0}
    lines = table([{**plain, "values": [1.0, 2.0]}, {**pool, "values": [1.0, 1.75]}]).splitlines()
    assert lines[2] == f"| {PLAIN} | 20.0 | 0.50 | 250 | 1.00 | 40.0 | 1.00 | 0.000 |"
    assert lines[3] == "| pool | 8.0 | 1.25 | 625 | 2.50 | 10.0 | 4.00 | 0.250 |"
