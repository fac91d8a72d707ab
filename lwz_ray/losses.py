"""Policy-gradient losses over flat token tensors, and the preference loss over pairs. They see tensors and numbers.

Denominators are global and come in as weights, so a sum over any split into ranks and microbatches is the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Aggregation = Literal["sequence_mean", "token_mean"]


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss, with gradient, and sums that add up over microbatches."""

    loss: torch.Tensor
    """scalar"""
    num_clipped: torch.Tensor
    """trained tokens whose clipped term was taken (its gradient is 0)"""
    sum_abs_log_ratio: torch.Tensor
    sum_k3: torch.Tensor
    """sum of ratio - 1 - log ratio, an estimate of KL(old || new) in nats a token"""


def clipped_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    token_weights: torch.Tensor,
    clip_epsilon: float,
) -> PolicyLoss:
    """Return the clipped surrogate of PPO and GRPO (arXiv 1707.06347 eq. 7), all tensors [num_trained].

    loss = sum_t w_t * -min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t),  rho_t = exp(logprobs_t - old_logprobs_t).
    Only trained tokens are passed; `token_weights` holds the denominators (see `token_weights_of`).
    """
    log_ratio = logprobs - old_logprobs
    ratio = torch.exp(log_ratio)
    plain = ratio * advantages
    clipped = torch.clamp(ratio, 1.0 - clip_epsilon, 1.0 + clip_epsilon) * advantages
    loss = (-torch.minimum(plain, clipped) * token_weights).sum()
    with torch.no_grad():
        return PolicyLoss(loss, (clipped < plain).sum(), log_ratio.abs().sum(), (ratio - 1.0 - log_ratio).sum())


def token_weights_of(num_trained_tokens: Sequence[int], aggregation: Aggregation) -> list[float]:
    """Return each sample's per-token weight for a whole optimizer batch.

    `sequence_mean` (GRPO): mean over samples of the mean over their tokens, 1 / (N * len_i).
    `token_mean` (DAPO): mean over all tokens, 1 / sum(len). A sample without trained tokens weighs 0, not counted in N.
    """
    trained = [n for n in num_trained_tokens if n > 0]
    if aggregation == "token_mean":
        total = sum(trained)
        return [1.0 / total if n else 0.0 for n in num_trained_tokens]
    return [1.0 / (len(trained) * n) if n else 0.0 for n in num_trained_tokens]


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """The loss, with gradient, and sums that add up over microbatches."""

    loss: torch.Tensor
    """scalar"""
    num_correct: torch.Tensor
    """pairs whose chosen text scores higher; a tie counts half"""
    sum_gap: torch.Tensor
    """sum of r_chosen - r_rejected"""


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margins: torch.Tensor,
    weights: torch.Tensor,
    center_coefficient: float,
) -> PreferenceLoss:
    """Return the Bradley-Terry loss with margin (arXiv 2307.09288 eq. 2) and centring, all tensors float32 [num_pairs].

    loss = sum_i w_i * (-log sigmoid(r_c - r_r - m) + coefficient * (r_c + r_r)^2). The second term (Eisenstein et al.
    2023, arXiv 2312.09244) fixes what the first leaves open, a constant added to every score of a prompt.
    """
    gap = chosen - rejected
    per_pair = -torch.nn.functional.logsigmoid(gap - margins) + center_coefficient * (chosen + rejected) ** 2
    loss = (weights * per_pair).sum()
    with torch.no_grad():
        return PreferenceLoss(loss, ((gap > 0).float() + 0.5 * (gap == 0).float()).sum(), gap.sum())
