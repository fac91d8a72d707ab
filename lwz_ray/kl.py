"""Estimators of the KL divergence of the policy from a reference, one term a token (Schulman 2020)."""

import torch

from lwz_ray.config_algorithm import KlEstimator


def kl_terms(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: KlEstimator) -> torch.Tensor:
    """Return an estimate of KL(policy || reference) a token, in nats: float [num_tokens], with gradient.

    With d = ref_logprobs - logprobs:  k1 = -d,  k2 = d^2 / 2,  k3 = exp(d) - 1 - d (GRPO, arXiv 2402.03300 eq. 4).
    k1 and k3 have the KL as their mean over the policy's samples, k3 with less variance and never below 0. As a loss,
    k1 has an expected gradient of 0 and only adds noise; k2's is the gradient of KL(policy || reference), k3's that of
    KL(reference || policy).
    """
    difference = ref_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return 0.5 * difference.square()
    return torch.exp(difference) - 1.0 - difference
