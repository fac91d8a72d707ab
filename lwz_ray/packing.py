"""Packed microbatches by token budget, balanced over ranks. Every trained token appears exactly once.

A microbatch is one row of concatenated samples; attention and positions restart at each sample's boundary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lwz_ray.records import TrainSample


@dataclass(frozen=True, slots=True, eq=False)
class Microbatch:
    """Samples in one row. Position t predicts token t + 1 of the same sample; others are masked.

    All arrays are [num_tokens] but `boundaries` [num_samples + 1].
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    targets: np.ndarray
    """int64: the next token of the same sample; 0 where masked"""
    loss_mask: np.ndarray
    old_logprobs: np.ndarray
    advantages: np.ndarray
    token_weights: np.ndarray
    boundaries: np.ndarray
    """int64 cumulative starts, ending with num_tokens"""

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])


def assign(lengths: Sequence[int], budget: int, ranks: int) -> list[list[list[int]]]:
    """Return [rank][microbatch] -> sample indices: each index once, each microbatch within `budget` tokens.

    Every rank gets the same number of microbatches (collectives run in lockstep), as few as fit; an empty one is allowed.
    Longest first into the least loaded microbatch; then the fullest microbatches are dealt over the ranks.
    Raises ValueError where a single sample exceeds the budget.
    """
    for index, length in enumerate(lengths):
        if length > budget:
            raise ValueError(f"sample {index} has {length} tokens, over the microbatch budget of {budget}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rounds = max(1, -(-sum(lengths) // (budget * ranks)))
    while True:
        bins = _fill(order, lengths, budget, rounds * ranks)
        if bins is not None:
            return _deal(bins, lengths, ranks, rounds)
        rounds += 1


def _fill(order: Sequence[int], lengths: Sequence[int], budget: int, num_bins: int) -> list[list[int]] | None:
    """Place samples, longest first, into the least loaded bin; None where one does not fit."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [0] * num_bins
    for i in order:
        target = loads.index(min(loads))
        if loads[target] + lengths[i] > budget:
            return None
        bins[target].append(i)
        loads[target] += lengths[i]
    return bins


def _deal(bins: list[list[int]], lengths: Sequence[int], ranks: int, rounds: int) -> list[list[list[int]]]:
    """Give each rank `rounds` bins, heaviest first to the lightest rank that still has room."""
    out: list[list[list[int]]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for members in sorted(bins, key=lambda b: -sum(lengths[i] for i in b)):
        rank = min((r for r in range(ranks) if len(out[r]) < rounds), key=lambda r: (loads[r], r))
        out[rank].append(sorted(members))
        loads[rank] += sum(lengths[i] for i in members)
    return out


def build_microbatch(samples: Sequence[TrainSample]) -> Microbatch:
    """Concatenate samples into one row; an empty list gives one masked token, so that a rank can keep in step."""
    if not samples:
        one = np.zeros(1, dtype=np.int64)
        nothing = np.zeros(1, dtype=np.float32)
        return Microbatch(one, one, one, np.zeros(1, bool), nothing, nothing, nothing, np.array([0, 1]))
    columns: dict[str, list[np.ndarray]] = {k: [] for k in ("ids", "pos", "tgt", "mask", "old", "adv", "w")}
    for s in samples:
        n = s.num_tokens
        mask = np.append(s.loss_mask[1:], False)
        columns["ids"].append(s.token_ids.astype(np.int64))
        columns["pos"].append(np.arange(n, dtype=np.int64))
        columns["tgt"].append(np.append(s.token_ids[1:], 0).astype(np.int64))
        columns["mask"].append(mask)
        columns["old"].append(np.append(s.rollout_logprobs[1:], 0.0).astype(np.float32))
        columns["adv"].append(np.full(n, s.advantage, dtype=np.float32))
        columns["w"].append(np.where(mask, s.token_weight, 0.0).astype(np.float32))
    flat = {k: np.concatenate(v) for k, v in columns.items()}
    starts = np.concatenate([[0], np.cumsum([s.num_tokens for s in samples])])
    return Microbatch(flat["ids"], flat["pos"], flat["tgt"], flat["mask"], flat["old"], flat["adv"], flat["w"], starts)


def split_over_ranks(samples: Sequence[TrainSample], budget: int, ranks: int) -> list[list[Microbatch]]:
    """Return each rank's microbatches of one optimizer batch."""
    plan = assign([s.num_tokens for s in samples], budget, ranks)
    return [[build_microbatch([samples[i] for i in members]) for members in rank] for rank in plan]
