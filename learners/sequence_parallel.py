"""Sequence parallelism: neighbouring ranks share one packed row, each computing a slice of its tokens.

DeepSpeed-Ulysses (arXiv 2309.14509), with the segments of packed rows. Everything but attention sees one token at a
time, so a rank needs only its slice; before attention one all-to-all exchanges tokens for heads, after it another one
undoes that:

    tokens  0 1 2 3 4 5 6 7              heads of rank 0    heads of rank 1
    rank 0  ─────── embed, norm, q k v ──▶ 0 1 2 3 4 5 6 7 ─┐                 ┌─▶ rank 0: its tokens,
    rank 1          ─────── the same ────▶                   0 1 2 3 4 5 6 7 ─┴─▶ rank 1: all heads
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class _AllToAll(torch.autograd.Function):
    """Block i of the first dimension goes to rank i; what block i of the gradient needs comes back the same way."""

    @staticmethod
    def forward(ctx, blocks, group):
        ctx.group = group
        out = torch.empty_like(blocks)
        dist.all_to_all_single(out, blocks, group=group)
        return out

    @staticmethod
    def backward(ctx, grad):
        return _AllToAll.apply(grad.contiguous(), ctx.group), None


class _SumOverGroup(torch.autograd.Function):
    """y = sum over ranks of x. Every rank's loss may use y, so x's gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        out = x.clone()
        dist.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx, grad):
        return _SumOverGroup.apply(grad, ctx.group), None


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The ranks that share a row, and this one's place among them. All of them make the same calls in the same order.

    Rank r holds tokens [r m, (r + 1) m) of a row padded to `size` times m tokens.
    """

    group: Any
    """A process group of torch.distributed, with a timeout of its own."""
    rank: int
    """Within the group."""
    size: int

    def slice_row(self, row: torch.Tensor) -> torch.Tensor:
        """Return this rank's slice [1, m] of a row [1, num_tokens]; behind the row's end stand zeros."""
        length = -(-row.shape[1] // self.size)
        whole = torch.nn.functional.pad(row, (0, length * self.size - row.shape[1]))
        return whole[:, self.rank * length : (self.rank + 1) * length]

    def own(self, positions: torch.Tensor, slice_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which of the row's `positions` lie in this rank's slice, as indices into them, and where in it.

        Both int64 [num_own], which may be 0.
        """
        local = positions - self.rank * slice_tokens
        mine = torch.nonzero((local >= 0) & (local < slice_tokens))[:, 0]
        return mine, local[mine]

    def whole(self, values: torch.Tensor, mine: torch.Tensor, count: int) -> torch.Tensor:
        """Return [..., count] out of each rank's [..., num_own] at its indices `mine`, equal on every rank.

        Differentiable: the gradient of a rank's own values is the sum of what every rank's loss says of them.
        """
        out = values.new_zeros(*values.shape[:-1], count).index_copy(values.dim() - 1, mine, values)
        return _SumOverGroup.apply(out, self.group)

    def to_heads(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return [1, heads / size, num_tokens, head_size] of each, out of [1, heads, m, head_size].

        Key and value heads that the ranks cannot share evenly are repeated, as few times as will do. Raises ValueError
        where the query heads cannot be shared.
        """
        heads, n = query.shape[1], self.size
        if heads % n:
            raise ValueError(f"{heads} attention heads cannot be shared by {n} ranks: learners.sequence_parallel={n}")
        repeats = key_value_repeats(heads, key.shape[1], n)
        key, value = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (key, value))
        # One exchange for all three: [rank, heads of that rank, m, head_size].
        blocks = torch.cat([x[0].unflatten(0, (n, -1)) for x in (query, key, value)], dim=1)
        mixed = _AllToAll.apply(blocks, self.group).transpose(0, 1).flatten(1, 2)[None, :, :num_tokens]
        return mixed.split([heads // n, key.shape[1] // n, key.shape[1] // n], dim=1)

    def to_tokens(self, attended: torch.Tensor) -> torch.Tensor:
        """Return [1, m, heads, head_size] out of [1, num_tokens, heads / size, head_size]."""
        num_tokens = attended.shape[1]
        length = -(-num_tokens // self.size)
        padded = torch.nn.functional.pad(attended[0], (0, 0, 0, 0, 0, length * self.size - num_tokens))
        blocks = _AllToAll.apply(padded.unflatten(0, (self.size, length)).contiguous(), self.group)
        return blocks.transpose(0, 1).flatten(1, 2)[None]


def key_value_repeats(heads: int, kv_heads: int, ranks: int) -> int:
    """Return the least r so that the ranks share r kv_heads evenly and queries still find theirs in order.

    kv_heads divide heads, and ranks divide heads; at most r = heads / kv_heads, a key head for each query head.
    """
    groups = heads // kv_heads
    return next(r for r in range(1, groups + 1) if groups % r == 0 and kv_heads * r % ranks == 0)


def join_sequence_group(size: int, timeout_s: float) -> SequenceGroup | None:
    """Return this rank's group of `size` neighbours; None where rows are not shared.

    Every rank of the default group calls this, at the same place. timeout_s: of each exchange.
    """
    if size == 1:
        return None
    group, _ = dist.new_subgroups(group_size=size, timeout=timedelta(seconds=timeout_s))
    return SequenceGroup(group, dist.get_rank() % size, size)
