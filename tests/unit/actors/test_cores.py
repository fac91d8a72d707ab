"""Which cores a replica computes on, whatever its number."""

import pytest

from actors.cores import cores_of


@pytest.mark.parametrize(
    ("num_cores", "threads", "replica", "workers", "expected"),
    [
        (4, 2, 1, 1, "2,3"),
        (4, 2, 5, 1, "2,3"),
        (2, 1, 7, 1, "1"),
        (2, 8, 3, 1, "0,1"),
        (4, 1, 1, 2, "2|3"),
        (3, 2, 1, 1, "0,2"),
    ],
)
def test_replicas_beyond_the_cores_share_them(
    num_cores: int, threads: int, replica: int, workers: int, expected: str
) -> None:
    assert cores_of(range(num_cores), threads, replica, workers) == expected


def test_cores_need_not_be_numbered_from_zero() -> None:
    assert cores_of([5, 9], 1, 3, 1) == "9"
