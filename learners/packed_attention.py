"""Attention over packed rows: each segment sees its prefix and itself, through torch's fused kernels.

`sdpa` runs one kernel call a segment, on any device; `varlen` one call for the whole row, on GPUs.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from learners.sequence_parallel import SequenceGroup
from lwz_ray.packing import Segment

NAMES = {"sdpa": "lwz_packed", "varlen": "lwz_packed_varlen"}
"""What transformers calls each choice of `learners.attention`."""

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, tuple[Segment, ...], float | None], torch.Tensor]


def _refuse_unknown_attention(segments: tuple[Segment, ...], more: dict[str, Any]) -> None:
    """Raise ValueError where the model asks for what would change the numbers and is not done here."""
    window = more.get("sliding_window")
    longest = max(prefix_stop - prefix_start + stop - start for prefix_start, prefix_stop, start, stop in segments)
    if window is not None and longest > window:
        raise ValueError(f"packed attention has no sliding window: the model's is {window}, a sample has {longest}")
    for name in ("softcap", "s_aux"):
        if more.get(name) is not None:
            raise ValueError(f"packed attention does not know {name}, which this model asks for")


def attend_by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: tuple[Segment, ...],
    scaling: float | None,
) -> torch.Tensor:
    """Return attention [1, num_tokens, heads, head_size], a kernel call a segment."""
    grouped = key.shape[1] != query.shape[1]
    parts = []
    for prefix_start, prefix_stop, start, stop in segments:
        q, k, v = (_with_prefix(x, prefix_start, prefix_stop, start, stop) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        parts.append(out[:, :, prefix_stop - prefix_start :])
    return torch.cat(parts, dim=2).transpose(1, 2)


def _with_prefix(x: torch.Tensor, prefix_start: int, prefix_stop: int, start: int, stop: int) -> torch.Tensor:
    own = x[:, :, start:stop]
    return own if prefix_start == prefix_stop else torch.cat([x[:, :, prefix_start:prefix_stop], own], dim=2)


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: tuple[Segment, ...],
    scaling: float | None,
) -> torch.Tensor:
    """Return attention [1, num_tokens, heads, head_size], one call of torch's variable-length kernel."""
    from torch.nn.attention.varlen import varlen_attn

    rows, bounds, kept, longest = varlen_layout(segments, query.device)
    q, k, v = (x[0].transpose(0, 1)[rows] for x in (query, key, value))
    grouped = key.shape[1] != query.shape[1]
    out = varlen_attn(
        q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )  # window (-1, 0): causal
    assert isinstance(out, torch.Tensor)
    return out[kept][None]


@lru_cache(maxsize=4)  # every layer of a pass asks for the same one
def varlen_layout(
    segments: tuple[Segment, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Return (rows, bounds, kept, longest) of the sequences prefix + own, one after another.

    rows: int64, the row's position that stands at each place of the concatenation. bounds: int32 [num_segments + 1],
    where each sequence starts and the last one ends. kept: int64 [num_tokens], the places of the own tokens, in the
    row's order. longest: tokens of the longest sequence. Queries and keys alike are prefix + own, so that "causal" has
    one meaning; the prefix's rows are computed and dropped.
    """
    rows, kept, bounds = [], [], [0]
    for prefix_start, prefix_stop, start, stop in segments:
        rows += [*range(prefix_start, prefix_stop), *range(start, stop)]
        bounds.append(len(rows))
        kept += range(len(rows) - (stop - start), len(rows))
    longest = max(b - a for a, b in pairwise(bounds))
    return (
        torch.tensor(rows, device=device),
        torch.tensor(bounds, dtype=torch.int32, device=device),
        torch.tensor(kept, device=device),
        longest,
    )


def _no_mask(*_: object, **__: object) -> None:
    """Build no mask: the segments say it all."""
    return


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    segments: tuple[Segment, ...] | None = None,
    attend: Attend = attend_by_segment,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention [1, num_tokens, heads, head_size] for query [1, heads, num_tokens, head_size].

    key, value: [1, kv_heads, num_tokens, head_size]. segments: see `lwz_ray.packing`; together they cover the row. A
    segment with a prefix runs over prefix and own tokens as one causal sequence, and keeps its own rows: the prefix
    rows cost a little attention, and no mask is ever built. attend: `attend_by_segment` or `attend_varlen`, which needs
    CUDA and half precision. more: `sequence`, a SequenceGroup where ranks share the row and num_tokens is this rank's
    slice of it; the rest is what transformers passes to every implementation.
    """
    if segments is None or query.shape[0] != 1:
        raise ValueError(f"packed attention needs one row and its segments, got {query.shape[0]} rows, {segments}")
    _refuse_unknown_attention(segments, more)
    sequence: SequenceGroup | None = more.get("sequence")
    if sequence is None:
        return attend(query, key, value, segments, scaling), None
    whole = sequence.to_heads(query, key, value, segments[-1][3])
    return sequence.to_tokens(attend(*whole, segments, scaling)), None


def register(attention: str = "sdpa") -> str:
    """Make both implementations known to transformers; return the name of the one that is wanted: sdpa | varlen."""
    for choice, function in (("sdpa", packed_attention), ("varlen", partial(packed_attention, attend=attend_varlen))):
        AttentionInterface.register(NAMES[choice], function)
        AttentionMaskInterface.register(NAMES[choice], _no_mask)
    return NAMES[attention]
