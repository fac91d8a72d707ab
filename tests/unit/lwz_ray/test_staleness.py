"""Capacity, staleness and the choice of a batch, in numbers worked out by hand; limits that contradict each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwz_ray.records import Completion, Group, ParsedText, Prompt, Sample, VersionSpan
from lwz_ray.staleness import capacity, choose_batch, must_train, out_of_reach, staleness_of
from tests.loop_parts import make_config

PROMPT = Prompt("p", "Write.", "en", None, 0)


def sample(*spans: tuple[int, int, int]) -> Sample:
    """Return a sample with version spans (start, stop, policy_version)."""
    num = spans[-1][1]
    ids, logprobs = np.zeros(num, np.int32), np.zeros(num, np.float32)
    completion = Completion("x", ids, logprobs, "stop", tuple(VersionSpan(*s) for s in spans))
    return Sample(0, 0, PROMPT, np.zeros(1, np.int32), completion, ParsedText(None, "x", True, 1.0), 1)


def test_staleness_is_that_of_the_oldest_token() -> None:
    group = Group(0, PROMPT, (sample((0, 4, 7)), sample((0, 2, 5), (2, 9, 6), (9, 10, 8))))
    assert staleness_of(group, 8) == 3
    assert staleness_of(Group(0, PROMPT, (sample((0, 4, 8)),)), 8) == 0


@pytest.mark.parametrize(
    ("rounds", "kept", "groups_per_step", "max_staleness", "expected"),
    [
        (0, 0, 4, 0, 4),
        (0, 4, 4, 0, 0),
        (0, 0, 4, 1, 8),
        (3, 16, 4, 1, 4),  # (3 + 1 + 1) * 4 = 20
        (3, 19, 4, 2, 5),  # (3 + 1 + 2) * 4 = 24
        (1, 99, 4, 2, 0),
    ],
)
def test_capacity(rounds: int, kept: int, groups_per_step: int, max_staleness: int, expected: int) -> None:
    assert capacity(rounds, kept, groups_per_step, max_staleness) == expected


def test_a_batch_needs_what_no_later_one_may_hold() -> None:
    # Version 5, at most 2 behind, 2 groups a batch. At most 0, 2, 4 groups of versions up to 3, 4, 5 may be left.
    starts = {0: 3, 1: 4, 2: 4, 3: 4, 4: 5, 5: 5}
    assert must_train(starts, 5, 2, 2) == [(3, 1), (4, 2), (5, 2)]
    # What is left of versions up to 4 fits into the next batch: only group 0 must go.
    assert must_train({0: 3, 1: 4, 2: 4}, 5, 2, 2) == [(3, 1), (4, 1)]
    assert must_train({1: 4, 2: 4}, 5, 2, 2) == []
    # Before anything can be too old, versions below 0 hold nothing back: 6 groups, 2 of which must go at version 0.
    assert must_train(dict.fromkeys(range(6), 0), 0, 2, 2) == [(0, 2)]
    assert must_train(dict.fromkeys(range(5), 0), 0, 2, 2) == [(0, 1)]


@pytest.mark.parametrize(
    ("starts", "ready", "version", "max_staleness", "expected"),
    [
        # Synchronous: the two of this version, when both are there.
        ({0: 4, 1: 4}, {0}, 4, 0, None),
        ({0: 4, 1: 4}, {0, 1}, 4, 0, [0, 1]),
        # One behind: both of version 3 must go, younger ones do not stand in for them.
        ({0: 3, 1: 3, 2: 4, 3: 4}, {1, 2, 3}, 4, 1, None),
        ({0: 3, 1: 3, 2: 4, 3: 4}, {0, 1, 2, 3}, 4, 1, [0, 1]),
        # Group 0 turned out to be begun with version 4: it can wait.
        ({0: 4, 1: 3, 2: 4, 3: 4}, {1, 2, 3}, 4, 1, [1, 2]),
        # Two behind: nothing is due, but four of version 3 would not fit into one batch: two of them must go now.
        ({0: 3, 1: 3, 2: 3, 3: 3, 4: 4, 5: 4}, {3, 4, 5}, 4, 2, None),
        ({0: 3, 1: 3, 2: 3, 3: 3, 4: 4, 5: 4}, {2, 3, 4, 5}, 4, 2, [2, 3]),
        # One of version 2 and any other.
        ({0: 2, 1: 3, 2: 3, 3: 4, 4: 4}, {0, 4}, 4, 2, [0, 4]),
        ({0: 2, 1: 3, 2: 3, 3: 4, 4: 4}, {1, 2, 3, 4}, 4, 2, None),
        # Lowest numbers first where any will do.
        ({7: 4, 8: 4, 9: 4}, {7, 8, 9}, 4, 2, [7, 8]),
    ],
)
def test_a_batch(
    starts: dict[int, int], ready: set[int], version: int, max_staleness: int, expected: list[int] | None
) -> None:
    assert choose_batch(starts, ready, version, 2, max_staleness) == expected


def test_what_a_lower_bound_has_no_room_for() -> None:
    # Version 5: with a bound of 1 and 2 groups a batch, two of version 4 and two more of version 5 can be trained.
    starts = {0: 3, 1: 4, 2: 4, 3: 4, 4: 5, 5: 5, 6: 5}
    assert out_of_reach(starts, {1, 3, 6}, 5, 2, 1) == [0, 2, 5]  # the made ones stay
    assert out_of_reach(starts, set(), 5, 2, 2) == [6]  # one of version 3, three of 4, two of 5
    assert out_of_reach(starts, set(), 5, 2, 3) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actors": {"sample_deadline_s": 5.0, "request_timeout_s": 5.0}},
            "actors.sample_deadline_s=5 is not below actors.request_timeout_s=5: a group would be given up before",
        ),
        (
            {"actors": {"request_timeout_s": 600.0}, "weights": {"mode": "wait", "timeout_s": 120.0}},
            "up to actors.request_timeout_s=600 s, but weights.timeout_s=120: raise it above 600",
        ),
        (
            {"actors": {"sample_deadline_s": 300.0, "request_timeout_s": 600.0}, "weights": {"mode": "wait"}},
            "up to actors.sample_deadline_s=300 s, but weights.timeout_s=120: raise it above 300",
        ),
    ],
)
def test_limits_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"actors": {"sample_deadline_s": 100.0, "request_timeout_s": 600.0}, "weights": {"mode": "wait"}},
        {"actors": {"request_timeout_s": 600.0}, "weights": {"mode": "abort", "timeout_s": 1.0}},
    ],
)
def test_limits_that_agree_are_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    make_config(tmp_path, **changes)
