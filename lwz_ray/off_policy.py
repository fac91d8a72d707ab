"""Importance weights from the engine's distribution to the learner's before the step."""

from dataclasses import dataclass

import torch

from lwz_ray.config_algorithm import Correction
from lwz_ray.policy_losses.terms import sample_means


@dataclass(frozen=True, slots=True)
class CorrectionWeights:
    """What each token's policy term is multiplied by, without gradient."""

    weights: torch.Tensor
    """float [num_trained]"""
    bounded: torch.Tensor
    """bool [num_trained]: truncated or masked"""


def correction_weights(
    old_logprobs: torch.Tensor,
    rollout_logprobs: torch.Tensor,
    sample_of: torch.Tensor,
    num_samples: int,
    method: Correction,
    low: float,
    high: float,
) -> CorrectionWeights:
    """Return importance weights with w_t = exp(old_logprobs_t - rollout_logprobs_t), all tensors [num_trained].

    token_truncated      min(w_t, high): truncated importance sampling (Ionides 2008; for engines, Yao et al. 2025)
    token_masked         w_t, and 0 outside [low, high] (IcePop, arXiv 2510.18855)
    sequence_truncated   min(g, high), g = exp(mean over the sample's tokens of log w_t), the statistic of GSPO
    sequence_masked      g, and 0 outside [low, high]
    decoupled            w_t, unbounded: decoupled PPO, w_t min(rho_t A_t, clip(rho_t) A_t) with rho_t = pi / pi_old and
                         pi_old the proximal policy (arXiv 2110.00641; for language models arXiv 2505.24298)
    none                 1

    The geometric mean stays near 1 at any length, where the product over 10,000 tokens vanishes or explodes.
    """
    log_weights = (old_logprobs - rollout_logprobs).detach()
    nothing = torch.zeros_like(log_weights, dtype=torch.bool)
    if method == "none":
        return CorrectionWeights(torch.ones_like(log_weights), nothing)
    if method.startswith("sequence"):
        log_weights = sample_means(log_weights, sample_of, num_samples)
    weights = torch.exp(log_weights)
    if method == "decoupled":
        return CorrectionWeights(weights, nothing)
    if method.endswith("truncated"):
        return CorrectionWeights(weights.clamp(max=high), weights > high)
    outside = (weights < low) | (weights > high)
    return CorrectionWeights(weights.masked_fill(outside, 0.0), outside)
