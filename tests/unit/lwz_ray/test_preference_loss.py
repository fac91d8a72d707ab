"""The preference loss on numbers worked out by hand."""

import math

import pytest
import torch

from lwz_ray.preference_loss import preference_loss


def test_loss_and_its_gradient() -> None:
    chosen, rejected = torch.tensor([2.0, 0.0, 1.0], requires_grad=True), torch.tensor([1.0, 0.0, 3.0])
    margins, weights = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.5, 0.25, 0.25])
    out = preference_loss(chosen, rejected, margins, weights, center_coefficient=0.1)
    # ln(1 + e^-1) = 0.313262, ln(1 + e^0.5) = 0.974077, ln(1 + e^3) = 3.048587; centring 0.1 * (9, 0, 16).
    assert out.loss.item() == pytest.approx(0.5 * 1.213262 + 0.25 * 0.974077 + 0.25 * 4.648587, abs=1e-5)
    assert (out.num_correct.item(), out.sum_gap.item()) == (1.5, -1.0)
    out.loss.backward()
    # w * (-sigmoid(-(gap - margin)) + 2 * 0.1 * sum): sigmoid(-1) = 0.268941, (0.5) = 0.622459, (3) = 0.952574.
    assert chosen.grad is not None
    wanted = [0.5 * (-0.268941 + 0.6), 0.25 * -0.622459, 0.25 * (-0.952574 + 0.8)]
    assert chosen.grad.tolist() == pytest.approx(wanted, abs=1e-5)


def test_equal_scores_cost_ln_2_and_no_pairs_0() -> None:
    one, none = torch.tensor([3.0]), torch.zeros(0)
    assert preference_loss(one, one, torch.zeros(1), torch.ones(1), 0.0).loss.item() == pytest.approx(math.log(2))
    assert preference_loss(none, none, none, none, 0.01).loss.item() == 0.0
