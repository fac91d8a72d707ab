"""The policy losses on numbers worked out by hand: values, gradients, what was clipped, and sums over splits."""

import math

import numpy as np
import pytest
import torch

from lwz_ray.config_algorithm import PolicyLossName
from lwz_ray.policy_losses import POLICY_LOSSES, PolicyTerms, TokenColumns
from lwz_ray.token_weights import token_weights_of

LENGTHS = [7, 1, 12, 4]


def columns_of(ratios: list[float], advantages: list[float], sample_of: list[int]) -> TokenColumns:
    """Return float64 columns whose tokens have these ratios, from old logprobs of -1.5."""
    old = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    logprobs = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    of = torch.tensor(sample_of)
    return TokenColumns(logprobs, old, torch.tensor(advantages, dtype=torch.float64), of, int(of.max()) + 1)


def terms_of(
    name: PolicyLossName, columns: TokenColumns, low: float, high: float
) -> tuple[PolicyTerms, list[float], list[bool]]:
    """Return the terms, the gradient of their sum by the logprobs, and what was clipped."""
    out = POLICY_LOSSES[name](columns, low, high)
    (gradient,) = torch.autograd.grad(out.terms.sum(), columns.logprobs)
    return out, gradient.tolist(), out.clipped.tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "term", "gradient", "clipped"),
    [
        # -min(rho A, clip(rho) A); the gradient by the logprob is -rho A, or 0 where the clipped term was taken.
        (1.1, 2.0, -2.2, -2.2, False),
        (1.25, 2.0, -2.5, -2.5, False),  # DAPO's higher bound lets it pass
        (1.5, 2.0, -2.56, 0.0, True),  # pushed far enough: 1.28 * 2
        (0.5, 2.0, -1.0, -1.0, False),  # too small and wanted: no clip on this side
        (0.9, -2.0, 1.8, 1.8, False),
        (0.5, -2.0, 1.6, 0.0, True),  # pushed down far enough: 0.8 * 2
        (1.5, -2.0, 3.0, 3.0, False),  # too large and unwanted: no clip on this side
        (1.5, 0.0, 0.0, 0.0, False),
        (1.0, -3.0, 3.0, 3.0, False),  # at ratio 1 the whole gradient flows
    ],
)
def test_clip_of_one_token(ratio: float, advantage: float, term: float, gradient: float, clipped: bool) -> None:
    out, grad, cut = terms_of("clip", columns_of([ratio], [advantage], [0]), 0.2, 0.28)
    assert (out.terms.item(), grad[0]) == pytest.approx((term, gradient), abs=1e-12)
    assert cut == [clipped]


def test_cispo_keeps_the_gradient_of_a_bounded_token() -> None:
    # -min(rho, 5) A logprob; gradient -min(rho, 5) A. The second token's ratio of 8 is bounded, both its signs.
    columns = columns_of([0.25, 8.0, 8.0], [2.0, 1.0, -1.0], [0, 0, 1])
    out, grad, cut = terms_of("cispo", columns, 1.0, 4.0)
    logprobs = [-1.5 + math.log(r) for r in (0.25, 8.0, 8.0)]
    assert out.terms.tolist() == pytest.approx([-0.5 * logprobs[0], -5 * logprobs[1], 5 * logprobs[2]])
    assert grad == pytest.approx([-0.5, -5.0, 5.0])
    assert cut == [False, True, True]


def test_cispo_with_a_lower_bound() -> None:
    _, grad, cut = terms_of("cispo", columns_of([0.25], [2.0], [0]), 0.5, 4.0)
    assert (grad, cut) == (pytest.approx([-1.0]), [True])


def test_reinforce_knows_no_ratio() -> None:
    columns = columns_of([0.5, 4.0], [2.0, -1.0], [0, 0])
    out, grad, cut = terms_of("reinforce", columns, 0.2, 0.2)
    assert out.terms.tolist() == pytest.approx([2.0 * (1.5 + math.log(2)), -1.5 + math.log(4)])
    assert (grad, cut) == (pytest.approx([-2.0, 1.0]), [False, False])


def gspo_by_sequences(columns: TokenColumns, low: float, high: float) -> torch.Tensor:
    """Return GSPO's loss as the paper writes it (eq. 5, 7): mean over samples of -min(s A, clip(s) A)."""
    losses = []
    for i in range(columns.num_samples):
        mine = columns.sample_of == i
        s = torch.exp((columns.logprobs[mine] - columns.old_logprobs[mine]).mean())
        advantage = columns.advantages[mine][0]
        losses.append(-torch.minimum(s * advantage, s.clamp(1 - low, 1 + high) * advantage))
    return torch.stack(losses).mean()


def test_gspo_is_the_published_formula_in_value_and_gradient() -> None:
    # Of samples 0 and 1 the bound decides, above for A > 0 and below for A < 0; of 2 and 3 it does not.
    torch.manual_seed(5)
    sample_of = np.repeat(np.arange(4), LENGTHS)
    shift = torch.tensor([0.02, -0.02, 0.02, 1e-4], dtype=torch.float64)[torch.from_numpy(sample_of)]
    old = torch.randn(24, dtype=torch.float64) - 2
    noise = torch.randn(24, dtype=torch.float64) * 1e-5
    advantages = torch.tensor([1.5, -0.5, -1.0, 2.0], dtype=torch.float64)[torch.from_numpy(sample_of)]
    logprobs = (old + shift + noise).requires_grad_()
    columns = TokenColumns(logprobs, old, advantages, torch.from_numpy(sample_of), 4)
    weights = np.repeat(token_weights_of(LENGTHS, "sequence_mean", 0), LENGTHS)
    out = POLICY_LOSSES["gspo"](columns, 3e-4, 4e-4)
    ours, wanted = (torch.from_numpy(weights) * out.terms).sum(), gspo_by_sequences(columns, 3e-4, 4e-4)
    assert ours.item() == pytest.approx(wanted.item(), abs=1e-14)
    gradients = [torch.autograd.grad(loss, logprobs)[0] for loss in (ours, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    assert gradients[0][:8].abs().max() == 0
    assert gradients[0][8:].abs().min() > 0.01
    assert out.clipped.tolist() == [True] * 8 + [False] * 16


def test_gspo_by_hand() -> None:
    # Ratios 2 and 0.5 have the geometric mean 1, ratios 4 and 1 that of 2: bounded to 1.5 for A = 1.
    out, grad, cut = terms_of("gspo", columns_of([2.0, 0.5, 4.0, 1.0], [3.0, 3.0, 1.0, 1.0], [0, 0, 1, 1]), 0.5, 0.5)
    assert out.terms.tolist() == pytest.approx([-3.0, -3.0, -1.5, -1.5])
    assert (grad, cut) == (pytest.approx([-3.0, -3.0, 0.0, 0.0]), [False, False, True, True])


def test_at_ten_thousand_tokens_the_geometric_mean_stands_where_the_product_vanishes() -> None:
    # Each token 1% less likely, in float32 as in training: 0.99 as a mean, 0.99^10000 = 2e-44 as a product.
    old = torch.full((10_000,), -2.0)
    logprobs = (old + math.log(0.99)).requires_grad_()
    columns = TokenColumns(logprobs, old, torch.ones(10_000), torch.zeros(10_000, dtype=torch.int64), 1)
    out, grad, _ = terms_of("gspo", columns, 0.2, 0.2)
    assert out.terms.tolist() == pytest.approx([-0.99] * 10_000, abs=1e-6)
    assert grad == pytest.approx([-0.99] * 10_000, abs=1e-6)
    assert torch.exp((logprobs - old).sum()).item() < 1e-40


@pytest.mark.parametrize("name", list(POLICY_LOSSES))
@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "fixed_length"])
def test_any_split_into_samples_adds_up_to_the_whole(name: PolicyLossName, aggregation) -> None:
    torch.manual_seed(3)
    old = torch.randn(24, dtype=torch.float64) - 2
    logprobs = (old + 0.3 * torch.randn(24, dtype=torch.float64)).requires_grad_()
    per_sample = torch.randn(4, dtype=torch.float64)
    weights = torch.tensor(token_weights_of(LENGTHS, aggregation, 16), dtype=torch.float64)
    starts = np.cumsum([0, *LENGTHS])

    def loss_of(samples: list[int]) -> tuple[torch.Tensor, int]:
        at = torch.from_numpy(np.concatenate([np.arange(starts[i], starts[i + 1]) for i in samples]))
        sample_of = torch.from_numpy(np.repeat(np.arange(len(samples)), [LENGTHS[i] for i in samples]))
        mine = torch.tensor(samples)[sample_of]
        columns = TokenColumns(logprobs[at], old[at], per_sample[mine], sample_of, len(samples))
        out = POLICY_LOSSES[name](columns, 0.02, 0.02)
        return (weights[mine] * out.terms).sum(), int(out.clipped.sum())

    def value_and_gradient(split: list[list[int]]) -> tuple[float, torch.Tensor, int]:
        parts = [loss_of(samples) for samples in split]
        total = torch.stack([loss for loss, _ in parts]).sum()
        return total.item(), torch.autograd.grad(total, logprobs)[0], sum(n for _, n in parts)

    whole, whole_gradient, whole_clipped = value_and_gradient([[0, 1, 2, 3]])
    assert (whole_clipped > 0) == (name != "reinforce")
    for split in ([[2, 0], [3, 1]], [[0], [1], [2], [3]], [[3, 2, 1, 0]], [[1], [0, 2, 3]]):
        value, gradient, clipped = value_and_gradient(split)
        assert value == pytest.approx(whole, abs=1e-12)
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-12, atol=1e-14)
        assert clipped == whole_clipped


@pytest.mark.parametrize(("name", "low", "high"), [("clip", 0.2, 0.3), ("reinforce", 0.2, 0.2)])
def test_gradients_are_those_of_finite_differences(name: PolicyLossName, low: float, high: float) -> None:
    columns = columns_of([1.1, 1.6, 0.5, 0.7, 1.02, 0.95], [2.0, 1.0, -1.0, 1.5, -0.3, 0.4], [0, 0, 1, 1, 1, 1])
    _, grad, _ = terms_of(name, columns, low, high)
    for t in range(6):
        values = []
        for step in (1e-6, -1e-6):
            moved = columns.logprobs.detach().clone()
            moved[t] += step
            there = TokenColumns(moved, columns.old_logprobs, columns.advantages, columns.sample_of, 2)
            values.append(POLICY_LOSSES[name](there, low, high).terms.sum().item())
        assert grad[t] == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("name", list(POLICY_LOSSES))
def test_no_token_is_no_loss(name: PolicyLossName) -> None:
    none = torch.zeros(0, requires_grad=True)
    out = POLICY_LOSSES[name](TokenColumns(none, none, none, torch.zeros(0, dtype=torch.int64), 0), 0.2, 0.2)
    assert (out.terms.shape, out.clipped.shape, out.clipped.dtype) == ((0,), (0,), torch.bool)
    assert out.terms.sum().item() == 0.0


@pytest.mark.parametrize("name", list(POLICY_LOSSES))
def test_what_is_reported_carries_no_gradient(name: PolicyLossName) -> None:
    out, _, _ = terms_of(name, columns_of([1.5], [1.0], [0]), 0.2, 0.2)
    assert (out.terms.requires_grad, out.clipped.requires_grad) == (True, False)
