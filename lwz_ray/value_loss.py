"""The critic's loss over flat token tensors. Denominators come in as token weights."""

import torch


def value_terms(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, value_clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one term a token, to be weighted, summed and minimised, and which were clipped; all [num_trained].

    term_t = max((V_t - R_t)^2, (clip(V_t, V_old - c, V_old + c) - R_t)^2) / 2, as in PPO's reference implementation;
    value_clip=None leaves the first alone. Where the second is larger and V_t has moved by more than c, the term has no
    gradient.
    """
    plain = (values - returns).square()
    if value_clip is None:
        return 0.5 * plain, torch.zeros_like(values, dtype=torch.bool)
    near = old_values + (values - old_values).clamp(-value_clip, value_clip)
    bounded = (near - returns).square()
    return 0.5 * torch.maximum(plain, bounded), (bounded > plain).detach()
