"""Advantages worked out by hand: three rewards of different scales, one without spread, abstentions, weights."""

from typing import get_args

import numpy as np
import pytest

from lwz_ray.advantages import (
    SPREAD_FLOOR,
    batch_advantages,
    batch_means,
    group_advantages,
    has_spread,
    normalise,
    summed_rewards,
    whiten,
)
from lwz_ray.config_algorithm import AdvantageMethod

NAN = float("nan")
THREE = {
    "length": np.array([0.0, 1.0, 0.0, 1.0]),  # mean 0.5, std 0.5: -1, 1, -1, 1
    "writing": np.array([10.0, 30.0, 30.0, 10.0]),  # mean 20, std 10: -1, 1, 1, -1
    "format": np.array([0.7, 0.7, 0.7, 0.7]),  # no spread: 0, 0, 0, 0
}
EQUAL = {"length": 1.0, "writing": 1.0, "format": 1.0}


def test_each_reward_is_normalised_then_averaged() -> None:
    # Sums of the normalised rows -2, 2, 0, 0 over the three weights.
    np.testing.assert_allclose(group_advantages(THREE, EQUAL), [-2 / 3, 2 / 3, 0.0, 0.0], atol=1e-12)


def test_weights_enter_numerator_and_denominator() -> None:
    # 3 * (-1, 1, -1, 1) + 1 * (-1, 1, 1, -1) = -4, 4, -2, 2 over 3 + 1; a weight of 0 leaves format out.
    weights = {"length": 3.0, "writing": 1.0, "format": 0.0}
    np.testing.assert_allclose(group_advantages(THREE, weights), [-1.0, 1.0, -0.5, 0.5], atol=1e-12)


def test_a_reward_on_a_hundred_times_the_scale_changes_nothing() -> None:
    wide = THREE | {"writing": 100.0 * THREE["writing"] - 7.0}
    np.testing.assert_allclose(group_advantages(wide, EQUAL), group_advantages(THREE, EQUAL), atol=1e-12)


def test_the_sum_is_normalised_where_the_sum_is_asked_for() -> None:
    # Sums 10.7, 31.7, 30.7, 11.7: mean 21.2, deviations -10.5, 10.5, 9.5, -9.5.
    # Their squares 110.25 and 90.25 twice each: std sqrt(100.25) = 10.0125.
    expected = np.array([-10.5, 10.5, 9.5, -9.5]) / 10.012492197250394
    np.testing.assert_allclose(group_advantages(THREE, EQUAL, "normalise_sum"), expected, atol=1e-12)


def test_an_abstaining_sample_is_averaged_over_the_rewards_it_has() -> None:
    # length of the three present: mean 2, std sqrt(8/3) = 1.632993: -2, 0, 2 over it; the last one has format alone.
    rewards = {"length": np.array([0.0, 2.0, 4.0, NAN]), "format": np.array([0.0, 0.0, 1.0, 1.0])}
    expected = [(-1.224744871 - 1) / 2, (0.0 - 1) / 2, (1.224744871 + 1) / 2, 1.0]
    np.testing.assert_allclose(group_advantages(rewards, {"length": 1.0, "format": 1.0}), expected, atol=1e-9)


def test_a_sample_without_any_reward_is_neither_better_nor_worse() -> None:
    rewards = {"length": np.array([0.0, 1.0, NAN])}
    np.testing.assert_allclose(group_advantages(rewards, {"length": 1.0}), [-1.0, 1.0, 0.0], atol=1e-12)


def test_in_a_sum_an_abstaining_sample_takes_the_mean() -> None:
    # Filled: 0, 2, 4, 2; plus format: 0, 2, 5, 3; mean 2.5, squares 6.25 + 0.25 + 6.25 + 0.25 = 13, std sqrt(3.25).
    rewards = {"length": np.array([0.0, 2.0, 4.0, NAN]), "format": np.array([0.0, 0.0, 1.0, 1.0])}
    expected = np.array([-2.5, -0.5, 2.5, 0.5]) / 1.8027756377319946
    found = group_advantages(rewards, {"length": 1.0, "format": 1.0}, "normalise_sum")
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_batch_is_whitened_where_that_is_asked_for() -> None:
    # Group sums of the normalised rows: -2, 2, 0, 0 and (-1, 1, -1, 1) + 0 (one reward with spread).
    # Together mean 0, variance (4 + 4 + 1 + 1 + 1 + 1) / 8 = 1.5.
    second = {k: THREE["length"] if k == "length" else np.ones(4) for k in THREE}
    one, two = batch_advantages([THREE, second], EQUAL, "normalise_sum_batch")
    np.testing.assert_allclose(one, np.array([-2.0, 2.0, 0.0, 0.0]) / 1.224744871391589, atol=1e-12)
    np.testing.assert_allclose(two, np.array([-1.0, 1.0, -1.0, 1.0]) / 1.224744871391589, atol=1e-12)


# Sums 10.7, 31.7, 30.7, 11.7 of mean 21.2, and 1, 3 of mean 2.
TWO_GROUPS = [THREE, {"length": np.array([1.0, 3.0])}]


@pytest.mark.parametrize(
    ("method", "first", "second"),
    [
        ("centred", [-10.5, 10.5, 9.5, -9.5], [-1.0, 1.0]),
        # Minus the mean of the other three, and of the other one.
        ("leave_one_out", [-14.0, 14.0, 38 / 3, -38 / 3], [-2.0, 2.0]),
        # All six: mean 88.8 / 6 = 14.8, squares 16.81 + 285.61 + 252.81 + 9.61 + 190.44 + 139.24 = 894.52.
        ("batch_whitened", [-4.1, 16.9, 15.9, -3.1], [-13.8, -11.8]),
        # Centred all six have mean 0 and variance (2 * 110.25 + 2 * 90.25 + 2) / 6 = 67.1667.
        ("centred_batch_whitened", [-10.5, 10.5, 9.5, -9.5], [-1.0, 1.0]),
    ],
)
def test_advantages_of_one_summed_reward(method: AdvantageMethod, first: list[float], second: list[float]) -> None:
    scale = {"batch_whitened": 12.210105105, "centred_batch_whitened": 8.195527237}.get(method, 1.0)
    one, two = batch_advantages(TWO_GROUPS, EQUAL, method)
    np.testing.assert_allclose(one, np.array(first) / scale, atol=1e-8)
    np.testing.assert_allclose(two, np.array(second) / scale, atol=1e-8)


def test_rewards_are_summed_by_weight() -> None:
    np.testing.assert_allclose(
        summed_rewards(THREE, {"length": 2.0, "writing": 0.1, "format": 0.0}), [1.0, 5.0, 3.0, 3.0]
    )


def test_a_group_that_abstains_takes_the_mean_of_the_batch() -> None:
    groups = [{"a": np.array([1.0, NAN, 3.0]), "b": np.array([2.0, 4.0, NAN])}, {"a": np.full(2, NAN), "b": np.ones(2)}]
    weights = {"a": 1.0, "b": 1.0}
    means = batch_means(groups, weights)
    assert means == {"a": 2.0, "b": 2.0}
    np.testing.assert_allclose(summed_rewards(groups[0], weights, means), [3.0, 6.0, 6.0])
    np.testing.assert_allclose(summed_rewards(groups[1], weights, means), [3.0, 3.0])
    np.testing.assert_allclose(summed_rewards(groups[1], weights), [1.0, 1.0])
    # All five: 3, 6, 6, 3, 3 of mean 4.2 and std 1.469694.
    one, two = batch_advantages(groups, weights, "batch_whitened")
    np.testing.assert_allclose(one, np.array([-1.2, 1.8, 1.8]) / 1.469693846, atol=1e-8)
    np.testing.assert_allclose(two, np.array([-1.2, -1.2]) / 1.469693846, atol=1e-8)


def test_a_penalty_joins_as_a_reward_below_zero() -> None:
    rewards = {"length": np.array([1.0, 1.0]), "overlong": np.array([0.0, -0.5])}
    np.testing.assert_allclose(group_advantages(rewards, {"length": 1.0, "overlong": 2.0}, "centred"), [0.5, -0.5])
    with pytest.raises(ValueError, match=r"negative weights \{'overlong': -2.0\}: a penalty is a reward below 0"):
        group_advantages(rewards, {"length": 1.0, "overlong": -2.0}, "centred")


def test_whitening_is_over_all_parts_together() -> None:
    one, two = whiten([np.array([1.0, 5.0]), np.array([3.0])])
    np.testing.assert_allclose([*one, *two], np.array([-2.0, 2.0, 0.0]) / 1.632993162, atol=1e-8)
    assert whiten([]) == []


def test_advantages_of_a_critic_are_not_made_here() -> None:
    with pytest.raises(ValueError, match="advantage=gae is not made from the rewards of a group"):
        batch_advantages([THREE], EQUAL, "gae")


@pytest.mark.parametrize("method", ["mean_of_normalised", "normalise_sum", "centred", "leave_one_out"])
def test_other_methods_do_not_look_across_groups(method: AdvantageMethod) -> None:
    second = {k: 5.0 * v[::-1] for k, v in THREE.items()}
    for rewards, found in zip([THREE, second], batch_advantages([THREE, second], EQUAL, method), strict=True):
        np.testing.assert_array_equal(found, group_advantages(rewards, EQUAL, method))


@pytest.mark.parametrize("method", [m for m in get_args(AdvantageMethod) if m != "gae"])
@pytest.mark.parametrize("value", [0.0, 0.1, NAN])
def test_no_spread_anywhere_gives_exactly_zero(method: AdvantageMethod, value: float) -> None:
    flat = {"length": np.full(3, value), "format": np.full(3, 0.3)}
    for found in batch_advantages([flat, flat], {"length": 1.0, "format": 1.0}, method):
        np.testing.assert_array_equal(found, np.zeros(3))


def test_spread_is_judged_on_present_values() -> None:
    assert SPREAD_FLOOR == 1e-6
    assert has_spread(np.array([0.0, 2.1e-6]))  # std 1.05e-6
    assert not has_spread(np.array([0.0, 1.9e-6]))  # std 0.95e-6
    assert not has_spread(np.array([1.0, NAN, NAN]))
    assert not has_spread(np.array([]))
    np.testing.assert_array_equal(normalise(np.array([1.0, NAN, 3.0])), [-1.0, 0.0, 1.0])


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no reward with a positive weight: rewards \['length'\], weights"):
        group_advantages({"length": np.ones(2)}, {"length": 0.0, "writing": 1.0})


def test_rewards_are_left_as_they_were() -> None:
    rewards = {"length": np.array([1.0, NAN, 3.0])}
    group_advantages(rewards, {"length": 1.0}, "normalise_sum")
    np.testing.assert_array_equal(rewards["length"], [1.0, NAN, 3.0])
