"""The paired bootstrap, the bootstrap of a mean and the one over clusters, with literal numbers."""

import numpy as np
import pytest

from lwz_ray.statistics import Interval, bootstrap_mean, bootstrap_ratios, paired_bootstrap, percentile_interval


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


def test_clusters_are_drawn_whole():
    """Two clusters, 3 of 3 right and 0 of 1: draws hold them twice, once each, or not, so the ratio is 1, 3/4 or 0."""
    draws = bootstrap_ratios(np.array([[3.0], [0.0]]), np.array([[3.0], [1.0]]), 2000, 5)
    values, counts = np.unique(draws, return_counts=True)
    assert draws.shape == (2000, 1)
    assert values.tolist() == [0.0, 0.75, 1.0]
    assert counts / 2000 == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    assert np.array_equal(draws, bootstrap_ratios(np.array([[3.0], [0.0]]), np.array([[3.0], [1.0]]), 2000, 5))


def test_columns_keep_their_draw_and_an_empty_one_is_no_number():
    sums, counts = np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    draws = bootstrap_ratios(sums, counts, 500, 2)
    # The second column lives in the first cluster alone: NaN exactly where the first column is 0.
    assert np.array_equal(np.isnan(draws[:, 1]), draws[:, 0] == 0)
    assert set(draws[~np.isnan(draws[:, 1]), 1]) == {1.0}
    assert percentile_interval(1.0, draws[:, 1]) == Interval(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no draw holds a number"):
        percentile_interval(0.5, np.array([np.nan]))


@pytest.mark.parametrize(
    ("sums", "counts", "resamples"),
    [([[1.0]], [[1.0, 2.0]], 10), ([], [], 10), ([[np.inf]], [[1.0]], 10), ([[1.0]], [[1.0]], 0)],
)
def test_a_cluster_bootstrap_refuses(sums: list[list[float]], counts: list[list[float]], resamples: int):
    with pytest.raises(ValueError, match=r"cluster bootstrap needs|resamples=0"):
        bootstrap_ratios(np.array(sums), np.array(counts), resamples, 1)


def test_the_bootstrap_of_a_mean_is_the_paired_one_against_nothing():
    values = np.array([1.0, 4.0, 4.0, 9.0])
    assert bootstrap_mean(values, 500, 3) == paired_bootstrap(np.zeros(4), values, 500, 3)
    # Two values 0 and 1: resampled means are 0, 0.5 and 1, both tails above 2.5%.
    assert bootstrap_mean(np.array([0.0, 1.0]), 4000, 1) == Interval(0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "resamples", "message"),
    [
        ([], 10, "a non-empty 1-D array"),
        ([[1.0]], 10, "a non-empty 1-D array"),
        ([1.0, float("inf")], 10, "1 of 2 values are not finite"),
        ([1.0], 0, "resamples=0"),
    ],
)
def test_refusals_of_the_bootstrap_of_a_mean(values, resamples, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(np.array(values), resamples, 0)
