"""Attention over a packed row: each sample attends to itself alone, causally, without a mask matrix.

Registered with transformers as `lwz_packed`; exact on any device, and linear in memory through torch's fused kernels.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "lwz_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    boundaries: tuple[int, ...] | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Return attention [1, num_tokens, heads, head_size] for query [1, heads, num_tokens, head_size].

    boundaries: cumulative starts of the samples, ending with num_tokens. key, value: [1, kv_heads, num_tokens, head_size].
    """
    if boundaries is None or query.shape[0] != 1:
        raise ValueError(f"packed attention needs one row and its boundaries, got {query.shape[0]} rows, {boundaries}")
    grouped = key.shape[1] != query.shape[1]
    parts = [
        scaled_dot_product_attention(
            query[:, :, a:b],
            key[:, :, a:b],
            value[:, :, a:b],
            is_causal=True,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=grouped,
        )
        for a, b in zip(boundaries[:-1], boundaries[1:], strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _no_mask(*_: object, **__: object) -> None:
    """Build no mask: the boundaries say it all."""
    return


def register() -> str:
    """Make the implementation known to transformers; return its name."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME
