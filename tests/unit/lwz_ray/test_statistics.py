"""The paired bootstrap, with literal numbers."""

import numpy as np
import pytest

from lwz_ray.statistics import Interval, paired_bootstrap


def test_a_constant_difference_has_no_width():
    result = paired_bootstrap(np.array([0.1, 0.5, 0.9]), np.array([0.35, 0.75, 1.15]), resamples=100, seed=7)
    assert result.mean == pytest.approx(0.25)
    assert result.low == pytest.approx(0.25)
    assert result.high == pytest.approx(0.25)


def test_two_prompts_by_hand():
    # Resampled means of the differences 0 and 1 are 0, 0.5, 1 with probability 1/4, 1/2, 1/4: both tails exceed 2.5%.
    assert paired_bootstrap(np.array([0.0, 0.0]), np.array([0.0, 1.0]), 4000, 1) == Interval(0.5, 0.0, 1.0)


def test_many_prompts_agree_with_the_normal_interval():
    # 200 differences, half -1 and half +3: mean 1, standard error 2 / sqrt(200) = 0.1414, 1.96 of them 0.2772.
    before = np.zeros(200)
    after = np.where(np.arange(200) % 2 == 0, -1.0, 3.0)
    result = paired_bootstrap(before, after, 10_000, 3)
    assert result.mean == 1.0
    assert result.low == pytest.approx(1 - 0.2772, abs=0.02)
    assert result.high == pytest.approx(1 + 0.2772, abs=0.02)


def test_pairing_removes_the_spread_between_prompts():
    before = np.linspace(0, 100, 50)
    result = paired_bootstrap(before, before + 1.0, 500, 0)
    assert result.high - result.low < 1e-9


def test_the_seed_fixes_the_interval():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=40), rng.normal(size=40)
    first = paired_bootstrap(before, after, 2500, 5)
    assert first == paired_bootstrap(before, after, 2500, 5)
    assert first != paired_bootstrap(before, after, 2500, 6)
    assert first.as_dict() == {"mean": first.mean, "low": first.low, "high": first.high}


@pytest.mark.parametrize(
    ("before", "after", "resamples", "message"),
    [
        ([0.0], [0.0, 1.0], 10, "two equal, non-empty"),
        ([], [], 10, "two equal, non-empty"),
        ([[0.0]], [[1.0]], 10, "two equal, non-empty"),
        ([0.0, 1.0], [float("nan"), 1.0], 10, "1 of 2 differences are not finite"),
        ([0.0], [1.0], 0, "resamples=0"),
    ],
)
def test_refusals(before, after, resamples, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(np.array(before), np.array(after), resamples, 0)
