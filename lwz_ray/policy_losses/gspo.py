"""GSPO: one ratio a sequence, the geometric mean of its tokens' ratios."""

import torch

from lwz_ray.policy_losses.terms import PolicyTerms, TokenColumns, sample_means


def gspo_terms(columns: TokenColumns, clip_low: float, clip_high: float) -> PolicyTerms:
    """Return the terms of GSPO-token (arXiv 2507.18071 eq. 13, 14), equal to GSPO where a sample has one advantage.

    s_i = exp(mean_t (logprobs_t - old_logprobs_t)); the value of s_t is s_i, its gradient that of logprobs_t:
    term_t = -min(s_t A_t, clip(s_t, 1 - low, 1 + high) A_t).
    """
    log_ratio = (columns.logprobs - columns.old_logprobs).detach()
    sequence = torch.exp(sample_means(log_ratio, columns.sample_of, columns.num_samples))
    ratio = sequence * torch.exp(columns.logprobs - columns.logprobs.detach())
    plain = ratio * columns.advantages
    clipped = torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high) * columns.advantages
    return PolicyTerms(-torch.minimum(plain, clipped), (clipped < plain).detach())
