"""Estimators of the KL divergence: by hand, over a whole distribution, and as gradients."""

import pytest
import torch

from lwz_ray.config_algorithm import KlEstimator
from lwz_ray.kl import kl_terms


@pytest.mark.parametrize(
    ("estimator", "terms", "gradients"),
    [
        # d = ref - logprob = ln 2, 0, -ln 2.
        ("k1", [-0.6931471806, 0.0, 0.6931471806], [1.0, 1.0, 1.0]),
        ("k2", [0.2402265070, 0.0, 0.2402265070], [-0.6931471806, 0.0, 0.6931471806]),  # -d
        ("k3", [0.3068528194, 0.0, 0.1931471806], [-1.0, 0.0, 0.5]),  # 1 - exp(d)
    ],
)
def test_by_hand(estimator: KlEstimator, terms: list[float], gradients: list[float]) -> None:
    logprobs = torch.full((3,), -2.0, dtype=torch.float64, requires_grad=True)
    ref = logprobs.detach() + torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64).log()
    found = kl_terms(logprobs, ref, estimator)
    assert found.tolist() == pytest.approx(terms, abs=1e-9)
    assert torch.autograd.grad(found.sum(), logprobs)[0].tolist() == pytest.approx(gradients, abs=1e-9)


def mean_over_policy(estimator: KlEstimator) -> tuple[float, torch.Tensor]:
    """Return the estimator's mean over p = (1/2, 1/4, 1/4) against q = (1/4, 1/4, 1/2), and its gradient by logits."""
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().requires_grad_()
    logprobs = torch.log_softmax(logits, 0)
    ref = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()
    probabilities = logprobs.detach().exp()
    mean = (probabilities * kl_terms(logprobs, ref, estimator)).sum()
    return mean.item(), torch.autograd.grad(mean, logits)[0]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_have_the_divergence_as_their_mean(estimator: KlEstimator) -> None:
    # KL(p || q) = ln 2 / 2 - ln 2 / 4.
    assert mean_over_policy(estimator)[0] == pytest.approx(0.1732867951, abs=1e-9)


def test_mean_gradients_of_a_loss_over_sampled_tokens() -> None:
    # k1: none. k2: of KL(p || q), p_i (log p_i/q_i - KL). k3: of KL(q || p), p_i - q_i.
    assert mean_over_policy("k1")[1].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    kl, ln2 = 0.1732867951, 0.6931471806
    wanted = [0.5 * (ln2 - kl), 0.25 * (0.0 - kl), 0.25 * (-ln2 - kl)]
    assert mean_over_policy("k2")[1].tolist() == pytest.approx(wanted, abs=1e-9)
    assert mean_over_policy("k3")[1].tolist() == pytest.approx([0.25, 0.0, -0.25], abs=1e-12)
