"""The clipped surrogate of PPO and GRPO, with two bounds as in DAPO."""

import torch

from lwz_ray.policy_losses.terms import PolicyTerms, TokenColumns


def clip_terms(columns: TokenColumns, clip_low: float, clip_high: float) -> PolicyTerms:
    """Return the terms of PPO (arXiv 1707.06347 eq. 7) with DAPO's clip-higher (arXiv 2503.14476 eq. 8).

    term_t = -min(rho_t A_t, clip(rho_t, 1 - low, 1 + high) A_t),  rho_t = exp(logprobs_t - old_logprobs_t).
    """
    ratio = torch.exp(columns.logprobs - columns.old_logprobs)
    plain = ratio * columns.advantages
    clipped = torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high) * columns.advantages
    return PolicyTerms(-torch.minimum(plain, clipped), (clipped < plain).detach())
