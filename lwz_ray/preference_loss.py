"""The preference loss over pairs. It sees tensors and numbers; denominators come in as weights."""

from dataclasses import dataclass

import torch


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
