"""Generalised advantage estimation on numbers worked out by hand."""

import numpy as np
import pytest

from lwz_ray.gae import gae

REWARDS, VALUES = np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.25, 0.75])


def test_by_hand() -> None:
    # gamma 0.5, lambda 0.5; delta: 0.5 * 0.25 - 0.5 = -0.375; 0.5 * 0.75 - 0.25 = 0.125; 1 - 0.75 = 0.25.
    # A: 0.25; 0.125 + 0.25 * 0.25 = 0.1875; -0.375 + 0.25 * 0.1875 = -0.328125.
    advantages, returns = gae(REWARDS, VALUES, 0.5, 0.5)
    assert advantages.tolist() == [-0.328125, 0.1875, 0.25]
    assert returns.tolist() == [0.171875, 0.4375, 1.0]


def test_with_lambda_1_the_return_is_the_discounted_reward() -> None:
    advantages, returns = gae(np.array([0.5, 0.0, 1.0]), VALUES, 0.5, 1.0)
    assert returns.tolist() == [0.75, 0.5, 1.0]  # 0.5 + 0.25 * 1, 0.5 * 1, 1
    assert advantages.tolist() == [0.25, 0.25, 0.25]


def test_with_lambda_0_it_is_the_one_step_error() -> None:
    assert gae(REWARDS, VALUES, 0.5, 0.0)[0].tolist() == [-0.375, 0.125, 0.25]


def test_a_reward_at_the_end_reaches_the_first_of_10_000_tokens_with_lambda_1_alone() -> None:
    rewards, values = np.zeros(10_000), np.zeros(10_000, dtype=np.float32)
    rewards[-1] = 2.0
    assert gae(rewards, values, 1.0, 1.0)[0].tolist() == [2.0] * 10_000
    faded = gae(rewards, values, 1.0, 0.95)[0]
    assert faded[-101] == pytest.approx(2.0 * 0.00592053, abs=1e-8)  # 0.95^100
    assert faded[0] < 1e-200


def test_no_token_and_unequal_columns() -> None:
    assert [x.shape for x in gae(np.zeros(0), np.zeros(0), 1.0, 0.95)] == [(0,), (0,)]
    with pytest.raises(ValueError, match=r"gae: rewards \(2,\) and values \(3,\) must be equal 1-D"):
        gae(np.zeros(2), VALUES, 1.0, 1.0)
