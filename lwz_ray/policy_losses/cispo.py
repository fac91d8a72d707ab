"""CISPO: the ratio is clipped as a weight, so every token keeps its gradient."""

import torch

from lwz_ray.policy_losses.terms import PolicyTerms, TokenColumns


def cispo_terms(columns: TokenColumns, clip_low: float, clip_high: float) -> PolicyTerms:
    """Return the terms of CISPO (MiniMax-M1, arXiv 2506.13585 eq. 4, 5).

    term_t = -sg(clip(rho_t, 1 - low, 1 + high)) A_t logprobs_t. clip_low=1 leaves no lower bound, as published.
    """
    ratio = torch.exp(columns.logprobs - columns.old_logprobs).detach()
    weight = torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return PolicyTerms(-weight * columns.advantages * columns.logprobs, weight != ratio)
