"""REINFORCE: no ratio, as RLOO uses it."""

import torch

from lwz_ray.policy_losses.terms import PolicyTerms, TokenColumns


def reinforce_terms(columns: TokenColumns, clip_low: float, clip_high: float) -> PolicyTerms:
    """Return -A_t logprobs_t (Williams 1992; RLOO: arXiv 2402.14740). The bounds are not used: there is no ratio."""
    clipped = torch.zeros_like(columns.logprobs, dtype=torch.bool)
    return PolicyTerms(-columns.advantages * columns.logprobs, clipped)
