"""Global denominators on numbers worked out by hand."""

import math

import pytest

from lwz_ray.config_algorithm import Aggregation
from lwz_ray.token_weights import token_weights_of


def test_sequence_mean_weighs_samples_alike() -> None:
    # Two samples are trained: 1 / (2 * 4) and 1 / (2 * 2); the untrained one is left out of the count.
    assert token_weights_of([4, 0, 2], "sequence_mean", 100) == [0.125, 0.0, 0.25]


def test_token_mean_weighs_tokens_alike() -> None:
    assert token_weights_of([4, 0, 4], "token_mean", 100) == [0.125, 0.0, 0.125]


def test_fixed_length_weighs_tokens_by_a_constant() -> None:
    # 1 / (2 samples * 8 tokens), whatever their lengths.
    assert token_weights_of([4, 0, 2], "fixed_length", 8) == [0.0625, 0.0, 0.0625]
    assert token_weights_of([1, 7], "fixed_length", 8) == [0.0625, 0.0625]


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_weights_of_means_add_up_to_one(aggregation: Aggregation) -> None:
    lengths = [3, 0, 5, 11]
    weights = token_weights_of(lengths, aggregation, 100)
    assert math.fsum(n * w for n, w in zip(lengths, weights, strict=True)) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "fixed_length"])
def test_a_batch_without_trained_tokens_weighs_nothing(aggregation: Aggregation) -> None:
    assert token_weights_of([0, 0], aggregation, 100) == [0.0, 0.0]
    assert token_weights_of([], aggregation, 100) == []
