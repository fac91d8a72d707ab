"""Importance weights from the engine's distribution to the learner's, on numbers worked out by hand."""

import math

import pytest
import torch

from lwz_ray.config_algorithm import Correction
from lwz_ray.off_policy import CorrectionWeights, correction_weights

RATIOS = [2.0, 0.5, 8.0, 8.0, 0.125]
SAMPLE_OF = torch.tensor([0, 0, 1, 1, 2])
"""Geometric means 1, 8 and 0.125."""


def weights_of(method: Correction, low: float = 0.4, high: float = 3.0) -> CorrectionWeights:
    rollout = torch.full((5,), -3.0, dtype=torch.float64)
    old = (rollout + torch.tensor(RATIOS, dtype=torch.float64).log()).requires_grad_()
    return correction_weights(old, rollout, SAMPLE_OF, 3, method, low, high)


@pytest.mark.parametrize(
    ("method", "weights", "bounded"),
    [
        ("none", [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
        ("token_truncated", [2, 0.5, 3, 3, 0.125], [0, 0, 1, 1, 0]),
        ("token_masked", [2, 0.5, 0, 0, 0], [0, 0, 1, 1, 1]),
        ("sequence_truncated", [1, 1, 3, 3, 0.125], [0, 0, 1, 1, 0]),
        ("sequence_masked", [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]),
        ("decoupled", [2, 0.5, 8, 8, 0.125], [0, 0, 0, 0, 0]),
    ],
)
def test_each_method(method: Correction, weights: list[float], bounded: list[int]) -> None:
    found = weights_of(method)
    assert found.weights.tolist() == pytest.approx(weights, abs=1e-12)
    assert found.bounded.tolist() == [bool(b) for b in bounded]
    assert not found.weights.requires_grad


def test_a_weight_on_the_bound_stays() -> None:
    old, rollout, one = torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    found = correction_weights(old, rollout, one, 1, "token_masked", 1.0, 2.0)
    assert (found.weights.tolist(), found.bounded.tolist()) == ([1.0], [False])


def test_shifted_logprobs_of_the_engine_are_corrected() -> None:
    # An engine that overrates each token by 0.05 nats: exp(-0.05). One that underrates them by 0.2 is bounded.
    old, one = torch.full((3,), -2.0), torch.zeros(3, dtype=torch.int64)
    found = correction_weights(old, old + 0.05, one, 1, "sequence_truncated", 0.9, 1.1)
    assert found.weights.tolist() == pytest.approx([0.951229] * 3, abs=1e-6)
    found = correction_weights(old, old - 0.2, one, 1, "sequence_truncated", 0.9, 1.1)
    assert (found.weights.tolist(), found.bounded.tolist()) == (pytest.approx([1.1] * 3), [True] * 3)


@pytest.mark.parametrize("per_token", [0.99, 1.01])
def test_ten_thousand_tokens_neither_vanish_nor_explode(per_token: float) -> None:
    # In float32: the mean is 0.99 or 1.01; the product is 2e-44 or 2e43.
    rollout, one = torch.full((10_000,), -2.0), torch.zeros(10_000, dtype=torch.int64)
    old = rollout + math.log(per_token)
    found = correction_weights(old, rollout, one, 1, "sequence_masked", 0.9, 1.1)
    assert found.weights.tolist() == pytest.approx([per_token] * 10_000, abs=1e-6)
    assert not found.bounded.any()
    product = torch.exp((old - rollout).sum().double()).item()
    assert product < 1e-40 or product > 1e40


@pytest.mark.parametrize("method", ["none", "token_truncated", "sequence_truncated", "sequence_masked", "decoupled"])
def test_a_sample_weighs_the_same_in_any_company(method: Correction) -> None:
    torch.manual_seed(1)
    old, rollout = torch.randn(9) - 2, torch.randn(9) - 2
    sample_of = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    whole = correction_weights(old, rollout, sample_of, 3, method, 0.5, 1.2)
    parts = [correction_weights(old[s], rollout[s], sample_of[s] - i, n, method, 0.5, 1.2) for s, i, n in (
        (slice(0, 3), 0, 1), (slice(3, 9), 1, 2)
    )]  # fmt: skip
    torch.testing.assert_close(torch.cat([p.weights for p in parts]), whole.weights, rtol=0, atol=0)
    assert torch.cat([p.bounded for p in parts]).tolist() == whole.bounded.tolist()


def test_nan_is_not_hidden() -> None:
    nan, one = torch.tensor([float("nan")]), torch.zeros(1, dtype=torch.int64)
    for method in ("token_truncated", "token_masked", "sequence_truncated", "sequence_masked", "decoupled"):
        assert correction_weights(nan, torch.zeros(1), one, 1, method, 0.5, 2.0).weights.isnan().all()
