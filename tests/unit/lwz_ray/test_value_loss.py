"""The critic's loss on numbers worked out by hand."""

import pytest
import torch

from lwz_ray.value_loss import value_terms


@pytest.mark.parametrize(
    ("value", "returns", "clip", "term", "gradient", "clipped"),
    [
        # Old value 1. max((V - R)^2, (clip(V) - R)^2) / 2, the gradient V - R, or 0 where the clipped one is larger.
        (1.1, 2.0, 0.2, 0.405, -0.9, False),
        (1.5, 2.0, 0.2, 0.32, 0.0, True),  # moved far enough towards the return: (1.2 - 2)^2 / 2
        (0.5, 2.0, 0.2, 1.125, -1.5, False),  # moved away from it: the whole error pulls back
        (0.5, -1.0, 0.2, 1.62, 0.0, True),  # (0.8 + 1)^2 / 2
        (1.5, 2.0, None, 0.125, -0.5, False),
    ],
)
def test_one_token(
    value: float, returns: float, clip: float | None, term: float, gradient: float, clipped: bool
) -> None:
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    old, target = torch.ones(1, dtype=torch.float64), torch.tensor([returns], dtype=torch.float64)
    terms, cut = value_terms(values, old, target, clip)
    (grad,) = torch.autograd.grad(terms.sum(), values)
    assert (terms.item(), grad.item()) == pytest.approx((term, gradient), abs=1e-12)
    assert cut.tolist() == [clipped]


def test_any_split_adds_up_to_the_whole() -> None:
    torch.manual_seed(2)
    values, old, returns = torch.randn(3, 24, dtype=torch.float64)
    whole, cut = value_terms(values, old, returns, 0.2)
    assert 0 < int(cut.sum()) < 24
    for cuts in ([1, 23], [7, 1, 12, 4], [0, 24]):
        split = zip(values.split(cuts), old.split(cuts), returns.split(cuts), strict=True)
        assert sum(value_terms(v, o, r, 0.2)[0].sum().item() for v, o, r in split) == pytest.approx(
            whole.sum().item(), abs=1e-12
        )
