"""Every branch of the length formula, by literal numbers."""

import pytest

from rewards.length import l_max_for, length_reward


@pytest.mark.parametrize(
    ("num_words", "expected"),
    [
        (0, 0.0),
        (1, 1 / 400),
        (200, 0.5),
        (399, 0.9975),
        (400, 1.0),
        (500, 1.0),
        (600, 1.0),
        (601, 599 / 600),
        (900, 0.5),
        (1200, 0.0),
        (5000, 0.0),
    ],
)
def test_length_reward_for_400_to_600_words_and_l_max_1200(num_words: int, expected: float) -> None:
    assert length_reward(num_words, 400, 600, 1200.0) == pytest.approx(expected)


def test_l_max_equal_to_the_upper_end_gives_0_right_above_it() -> None:
    assert length_reward(600, 400, 600, 600.0) == 1.0
    assert length_reward(601, 400, 600, 600.0) == 0.0


@pytest.mark.parametrize(
    ("high", "factor", "expected"), [(600, 2.0, 1200.0), (600, 1.5, 900.0), (600, 1.0, 601.0), (2, 1.2, 3.0)]
)
def test_l_max_is_the_factor_times_the_upper_end_and_at_least_one_more(
    high: int, factor: float, expected: float
) -> None:
    assert l_max_for(high, factor) == expected


@pytest.mark.parametrize(
    ("num_words", "low", "high", "l_max"), [(5, 0, 10, 20.0), (5, 11, 10, 20.0), (5, 1, 10, 9.0), (-1, 1, 10, 20.0)]
)
def test_impossible_numbers_are_refused(num_words: int, low: int, high: int, l_max: float) -> None:
    with pytest.raises(ValueError, match="length_reward"):
        length_reward(num_words, low, high, l_max)


def test_l_max_is_a_factor_under_a_cap_and_never_below_the_range() -> None:
    assert l_max_for(1000, 2.0) == 2000.0
    assert l_max_for(1000, 2.0, cap=1500) == 1500.0
    assert l_max_for(1000, 2.0, cap=900) == 1001.0  # the cap never makes the range itself too long
