"""The clipped loss and the preference loss on numbers worked out by hand, and their denominators."""

import math

import pytest
import torch

from lwz_ray.losses import PolicyLoss, clipped_policy_loss, preference_loss, token_weights_of

EPSILON = 0.2


def loss_of(ratios: list[float], advantages: list[float], weights: list[float]) -> tuple[PolicyLoss, torch.Tensor]:
    """Return the loss of tokens with these ratios, and its gradient by their logprobs."""
    old = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    logprobs = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    as_tensor = [torch.tensor(x, dtype=torch.float64) for x in (advantages, weights)]
    out = clipped_policy_loss(logprobs, old, *as_tensor, clip_epsilon=EPSILON)
    out.loss.backward()
    assert logprobs.grad is not None
    return out, logprobs.grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        # -min(rho A, clip(rho) A); the gradient by the logprob is -rho A, or 0 where the clipped term was taken.
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # pushed far enough: 1.2 * 2
        (0.5, 2.0, -1.0, -1.0, 0),  # too small and wanted: no clip on this side
        (0.9, -2.0, 1.8, 1.8, 0),
        (0.5, -2.0, 1.6, 0.0, 1),  # pushed down far enough: 0.8 * 2
        (1.5, -2.0, 3.0, 3.0, 0),  # too large and unwanted: no clip on this side
        (1.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_one_token(ratio: float, advantage: float, loss: float, gradient: float, clipped: int) -> None:
    out, grad = loss_of([ratio], [advantage], [1.0])
    assert out.loss.item() == pytest.approx(loss, abs=1e-12)
    assert grad.item() == pytest.approx(gradient, abs=1e-12)
    assert out.num_clipped.item() == clipped


def test_at_ratio_one_the_whole_gradient_flows() -> None:
    out, grad = loss_of([1.0, 1.0], [1.0, -3.0], [0.5, 0.25])
    assert out.loss.item() == pytest.approx(-0.5 + 0.75)
    assert grad.tolist() == pytest.approx([-0.5, 0.75])


def test_a_sequence_with_weights_and_sums() -> None:
    # -(1.1 * 2) / 4 - (1.2 * 2) / 4 + (0.8 * 2) / 8 = -0.55 - 0.6 + 0.2; clipped: the second and the third.
    out, grad = loss_of([1.1, 1.5, 0.5], [2.0, 2.0, -2.0], [0.25, 0.25, 0.125])
    assert out.loss.item() == pytest.approx(-0.95)
    assert grad.tolist() == pytest.approx([-0.55, 0.0, 0.0])
    assert out.num_clipped.item() == 2
    # |ln 1.1| + |ln 1.5| + |ln 0.5| and the sums of rho - 1 - ln rho.
    assert out.sum_abs_log_ratio.item() == pytest.approx(0.0953101798 + 0.4054651081 + 0.6931471806)
    assert out.sum_k3.item() == pytest.approx(0.0046898202 + 0.0945348919 + 0.1931471806)


def test_reported_sums_carry_no_gradient() -> None:
    out, _ = loss_of([1.5], [1.0], [1.0])
    assert [t.requires_grad for t in (out.num_clipped, out.sum_abs_log_ratio, out.sum_k3)] == [False] * 3
    assert out.loss.requires_grad


def test_any_split_adds_up_to_the_whole() -> None:
    torch.manual_seed(3)
    lengths = [7, 1, 12, 4]
    weights = token_weights_of(lengths, "sequence_mean")
    columns = [
        torch.randn(24, dtype=torch.float64) - 2,
        torch.randn(24, dtype=torch.float64) - 2,
        torch.randn(4, dtype=torch.float64).repeat_interleave(torch.tensor(lengths)),
        torch.tensor(weights, dtype=torch.float64).repeat_interleave(torch.tensor(lengths)),
    ]
    whole = clipped_policy_loss(*columns, clip_epsilon=EPSILON)
    for cuts in ([24], [1, 23], [7, 1, 12, 4], [5, 5, 5, 5, 4], [1] * 24, [0, 24]):
        split = [clipped_policy_loss(*part, clip_epsilon=EPSILON) for part in zip(*(c.split(cuts) for c in columns))]  # noqa: B905
        for name in PolicyLoss.__slots__:
            assert sum(getattr(s, name).item() for s in split) == pytest.approx(getattr(whole, name).item(), abs=1e-12)


def test_sequence_mean_weighs_samples_alike() -> None:
    # Two samples are trained: 1 / (2 * 4) and 1 / (2 * 2); the untrained one is left out of the count.
    assert token_weights_of([4, 0, 2], "sequence_mean") == [0.125, 0.0, 0.25]


def test_token_mean_weighs_tokens_alike() -> None:
    assert token_weights_of([4, 0, 4], "token_mean") == [0.125, 0.0, 0.125]


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_a_batch_without_trained_tokens_weighs_nothing(aggregation) -> None:
    assert token_weights_of([0, 0], aggregation) == [0.0, 0.0]
    assert math.fsum(n * w for n, w in zip([3, 5], token_weights_of([3, 5], aggregation), strict=True)) == 1.0


def test_preference_loss_and_its_gradient() -> None:
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


def test_preference_loss_of_equal_scores_is_ln_2_and_of_no_pairs_0() -> None:
    one, none = torch.tensor([3.0]), torch.zeros(0)
    assert preference_loss(one, one, torch.zeros(1), torch.ones(1), 0.0).loss.item() == pytest.approx(math.log(2))
    assert preference_loss(none, none, none, none, 0.01).loss.item() == 0.0
