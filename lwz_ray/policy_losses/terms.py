"""What goes into a policy loss and what comes out of it, and means over the tokens of a sample."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """The trained tokens of one microbatch, flat; each sample's tokens are all here."""

    logprobs: torch.Tensor
    """float [num_trained], with gradient"""
    old_logprobs: torch.Tensor
    """float [num_trained], without"""
    advantages: torch.Tensor
    """float [num_trained]"""
    sample_of: torch.Tensor
    """int64 [num_trained], 0 … num_samples - 1"""
    num_samples: int


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """One term a token, to be weighted, summed and minimised."""

    terms: torch.Tensor
    """float [num_trained], with gradient"""
    clipped: torch.Tensor
    """bool [num_trained]: the bound on the ratio decided this token's term"""


def sample_means(values: torch.Tensor, sample_of: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Return the mean over each sample's tokens, spread over them again: float [num_trained].

    Sums are taken in float64: GSPO's bounds lie at 3e-4, and devices add in an order of their own.
    """
    zeros = torch.zeros(num_samples, dtype=torch.float64, device=values.device)
    counts = zeros.index_add(0, sample_of, torch.ones_like(values, dtype=torch.float64))
    return (zeros.index_add(0, sample_of, values.double()) / counts.clamp(min=1))[sample_of].to(values.dtype)
