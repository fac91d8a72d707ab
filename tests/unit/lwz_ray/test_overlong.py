"""The soft punishment of overlong samples, on DAPO's numbers and at its edges."""

import pytest

from lwz_ray.overlong import overlong_penalty


@pytest.mark.parametrize(
    ("num_tokens", "penalty"),
    [(0, 0.0), (16_384, 0.0), (16_385, -1 / 4096), (18_432, -0.5), (20_480, -1.0), (30_000, -1.0)],
)
def test_published_numbers(num_tokens: int, penalty: float) -> None:
    assert overlong_penalty(num_tokens, 20_480, 4096) == penalty


def test_without_a_buffer_there_is_none() -> None:
    assert [overlong_penalty(n, 100, 0) for n in (0, 100, 101)] == [0.0, 0.0, 0.0]


def test_a_buffer_above_the_limit_begins_at_0_tokens() -> None:
    assert [overlong_penalty(n, 48, 4096) for n in (0, 12, 48)] == [0.0, -0.25, -1.0]


@pytest.mark.parametrize("numbers", [(-1, 10, 1), (1, 0, 1), (1, 10, -1)])
def test_impossible_numbers_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="overlong penalty of"):
        overlong_penalty(*numbers)
