"""Attention over a packed row: each sample attends to its prompt and itself, causally, without a mask matrix.

Registered with transformers as `lwz_packed`; exact on any device, and linear in memory through torch's fused kernels.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from lwz_ray.packing import Segment

NAME = "lwz_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    segments: tuple[Segment, ...] | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Return attention [1, num_tokens, heads, head_size] for query [1, heads, num_tokens, head_size].

    key, value: [1, kv_heads, num_tokens, head_size]. segments: see `lwz_ray.packing`; together they cover the row. A
    segment with a prefix runs over prefix and own tokens as one causal sequence, and keeps its own rows: the prefix
    rows cost a little attention, and no mask is ever built.
    """
    if segments is None or query.shape[0] != 1:
        raise ValueError(f"packed attention needs one row and its segments, got {query.shape[0]} rows, {segments}")
    grouped = key.shape[1] != query.shape[1]
    parts = []
    for prefix_start, prefix_stop, start, stop in segments:
        q, k, v = (_with_prefix(x, prefix_start, prefix_stop, start, stop) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        parts.append(out[:, :, prefix_stop - prefix_start :])
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _with_prefix(x: torch.Tensor, prefix_start: int, prefix_stop: int, start: int, stop: int) -> torch.Tensor:
    own = x[:, :, start:stop]
    return own if prefix_start == prefix_stop else torch.cat([x[:, :, prefix_start:prefix_stop], own], dim=2)


def _no_mask(*_: object, **__: object) -> None:
    """Build no mask: the segments say it all."""
    return


def register() -> str:
    """Make the implementation known to transformers; return its name."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME
