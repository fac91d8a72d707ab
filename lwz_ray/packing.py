"""Packed microbatches by token budget, balanced over ranks. Every trained token appears exactly once.

A microbatch is one row. Samples of one prompt share its tokens: the prompt is computed once, and each completion
attends to it and to itself, which a causal model cannot tell from computing every sample alone.

    row       p0 p0 p0 │ a a a a │ b b b │ p1 p1 │ c c c c c
    segments  prompt 0   a: p0+a   b: p0+b  prompt 1  c: p1+c
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lwz_ray.packing_cost import family_cost, family_tokens
from lwz_ray.records import TokenFacts, TrainSample

Segment = tuple[int, int, int, int]
"""(prefix start, prefix stop, start, stop): row[start:stop] attends to row[prefix] and causally to itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Microbatch:
    """One packed row, and what is trained in it."""

    token_ids: np.ndarray
    """int64 [num_tokens]"""
    position_ids: np.ndarray
    """int64 [num_tokens], as if each sample stood alone"""
    segments: tuple[Segment, ...]
    rows: np.ndarray
    """int64 [num_trained]: the position whose output predicts each trained token; a prompt's last one may recur"""
    targets: np.ndarray
    """int64 [num_trained]: the trained tokens"""
    rollout_logprobs: np.ndarray
    """float32 [num_trained]"""
    advantages: np.ndarray
    """float32 [num_trained]"""
    token_weights: np.ndarray
    """float32 [num_trained]"""
    token_ages: np.ndarray
    """int32 [num_trained]"""
    sample_of: np.ndarray
    """int64 [num_trained], 0 … num_samples - 1: which sample of the row a trained token belongs to"""
    sample_index: np.ndarray
    """int64 [num_samples]: each sample's place in the list that was packed"""
    sample_source: np.ndarray
    """int64 [num_samples]: the data source of each sample, by index"""
    old_logprobs: np.ndarray | None = None
    """float32 [num_trained]; this and the next three are None where the samples do not carry them"""
    ref_logprobs: np.ndarray | None = None
    values: np.ndarray | None = None
    returns: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_trained(self) -> int:
        return int(self.targets.shape[0])

    @property
    def num_samples(self) -> int:
        return int(self.sample_index.shape[0])


def split_over_ranks(
    samples: Sequence[TrainSample], budget: int, ranks: int, attention_cost: float = 0.0
) -> list[list[Microbatch]]:
    """Return each rank's microbatches of one optimizer batch; equal arguments give equal microbatches.

    Every rank gets the same number (collectives run in lockstep), each within `budget` tokens; they are balanced by
    `lwz_ray.packing_cost`, where attention_cost=0 counts tokens alone. Raises ValueError where a single sample exceeds
    the budget.
    """
    families = group_by_prompt(samples, budget)
    lengths = [family_tokens(samples, f) for f in families]
    plan = assign(lengths, budget, ranks, [family_cost(samples, f, attention_cost) for f in families])
    return [[build_microbatch(samples, [families[f] for f in members]) for members in rank] for rank in plan]


def group_by_prompt(samples: Sequence[TrainSample], budget: int) -> list[list[int]]:
    """Return runs of neighbouring samples that share a prompt, each at most half the budget unless it is one sample.

    Half, so that runs can still be balanced over microbatches and ranks.
    """
    families: list[list[int]] = []
    for i, sample in enumerate(samples):
        if families and _same_prompt(samples[families[-1][0]], sample):
            longer = [*families[-1], i]
            if family_tokens(samples, longer) <= budget // 2:
                families[-1] = longer
                continue
        families.append([i])
    return families


def assign(
    lengths: Sequence[int], budget: int, ranks: int, costs: Sequence[float] | None = None
) -> list[list[list[int]]]:
    """Return [rank][microbatch] -> item indices: each index once, each microbatch within `budget` tokens.

    Every rank gets the same number of microbatches, as few as are found to fit; an empty one is allowed. Costliest
    first into the cheapest microbatch with room; where that runs out of room, longest first into the fullest one.
    costs: of each item; None: its length. The microbatches are then dealt round by round: ranks wait for each other in
    every layer of a round, so those of one round are alike, and the costliest goes to the rank with the least so far.
    """
    costs = lengths if costs is None else costs
    for index, length in enumerate(lengths):
        if length > budget:
            raise ValueError(f"item {index} has {length} tokens, over the microbatch budget of {budget}")
    rounds = max(1, -(-sum(lengths) // (budget * ranks)))
    while True:
        for balance in (True, False):
            bins = _fill(lengths, costs, budget, rounds * ranks, balance)
            if bins is not None:
                return _deal(bins, costs, ranks)
        rounds += 1


def build_microbatch(samples: Sequence[TrainSample], families: Sequence[Sequence[int]]) -> Microbatch:
    """Lay out families of samples that share a prompt, given as indices into `samples`.

    No family gives one untrained token, so that a rank keeps in step.
    """
    row = _Row()
    for family in families:
        row.add([samples[i] for i in family], family)
    if not families:
        nothing = np.zeros(1, np.float32)
        row.add([TrainSample(np.zeros(1, np.int32), 1, np.zeros(1, bool), nothing, nothing, 0.0)], [])
    return row.build()


class TokenRow:
    """Tokens of a row in the making, with their positions and segments."""

    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._segments: list[Segment] = []
        self.size = 0

    def append(self, token_ids: np.ndarray, first_position: int, prefix: tuple[int, int]) -> None:
        """Append one segment that attends to row[prefix] and to itself; nothing where it has no tokens."""
        if token_ids.size == 0:
            return
        stop = self.size + token_ids.size
        self._ids.append(token_ids.astype(np.int64))
        self._positions.append(np.arange(first_position, first_position + token_ids.size, dtype=np.int64))
        self._segments.append((*prefix, self.size, stop))
        self.size = stop

    def columns(self) -> tuple[np.ndarray, np.ndarray, tuple[Segment, ...]]:
        """Return token ids, position ids (int64 [size]) and segments."""
        return np.concatenate(self._ids), np.concatenate(self._positions), tuple(self._segments)


class _Row:
    """A microbatch in the making."""

    def __init__(self) -> None:
        self._tokens = TokenRow()
        self._indices: list[int] = []
        self._sources: list[int] = []
        self._trained: list[dict[str, np.ndarray]] = []

    def add(self, samples: Sequence[TrainSample], indices: Sequence[int]) -> None:
        """Append one prompt and the completions of its samples. indices: as many as samples, or none to keep none."""
        num_prompt = samples[0].num_prompt_tokens
        prompt_start = self._tokens.size
        self._tokens.append(samples[0].token_ids[:num_prompt], 0, (prompt_start, prompt_start))
        for ordinal, sample in enumerate(samples, start=len(self._indices)):
            start = self._tokens.size
            own = slice(num_prompt, sample.num_tokens)
            self._tokens.append(sample.token_ids[own], num_prompt, (prompt_start, prompt_start + num_prompt))
            trained = np.flatnonzero(sample.loss_mask)
            completion = trained - num_prompt
            # Token j of a completion is predicted at the position before it; the first one at the prompt's last token.
            before = np.where(completion == 0, prompt_start + num_prompt - 1, start + completion - 1)
            self._trained.append(
                {
                    "rows": before.astype(np.int64),
                    "targets": sample.token_ids[trained].astype(np.int64),
                    "token_weights": np.full(trained.size, sample.token_weight, dtype=np.float32),
                    "sample_of": np.full(trained.size, ordinal, dtype=np.int64),
                    **_token_columns(sample, trained),
                }
            )
        self._indices.extend(indices)
        self._sources.extend(sample.source for sample, _ in zip(samples, indices, strict=False))

    def build(self) -> Microbatch:
        """Raises ValueError where some samples of a row carry a column that others lack."""
        names = set().union(*self._trained)
        lacking = sorted(n for n in names if any(n not in columns for columns in self._trained))
        if lacking:
            raise ValueError(f"some samples of a microbatch have {', '.join(lacking)} and some have not")
        columns = {n: np.concatenate([c[n] for c in self._trained]) for n in names}
        ids, positions, segments = self._tokens.columns()
        index, source = (np.asarray(column, dtype=np.int64) for column in (self._indices, self._sources))
        return Microbatch(ids, positions, segments, sample_index=index, sample_source=source, **columns)


def _token_columns(sample: TrainSample, trained: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a sample says of its trained tokens; what it does not carry is left out."""
    facts = sample.facts or TokenFacts()
    ages = np.zeros(sample.num_tokens, np.int32) if sample.token_ages is None else sample.token_ages
    columns = {
        "rollout_logprobs": sample.rollout_logprobs,
        "advantages": sample.advantages,
        "old_logprobs": facts.old_logprobs,
        "ref_logprobs": facts.ref_logprobs,
        "values": facts.values,
        "returns": sample.returns,
    }
    found = {name: c[trained].astype(np.float32) for name, c in columns.items() if c is not None}
    return found | {"token_ages": ages[trained].astype(np.int32)}


def _same_prompt(a: TrainSample, b: TrainSample) -> bool:
    n = a.num_prompt_tokens
    return n == b.num_prompt_tokens and np.array_equal(a.token_ids[:n], b.token_ids[:n])


def _fill(
    lengths: Sequence[int], costs: Sequence[float], budget: int, num_bins: int, balance: bool
) -> list[list[int]] | None:
    """Place each item into a bin that has room for its tokens; None where none has.

    balance: costliest first into the cheapest bin; else longest first into the fullest one, which fits more.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    tokens, loads = [0] * num_bins, [0.0] * num_bins
    weights = costs if balance else lengths
    for i in sorted(range(len(lengths)), key=lambda i: (-weights[i], i)):
        with_room = [b for b in range(num_bins) if tokens[b] + lengths[i] <= budget]
        if not with_room:
            return None
        target = min(with_room, key=lambda b: (loads[b] if balance else -tokens[b], b))
        bins[target].append(i)
        tokens[target] += lengths[i]
        loads[target] += costs[i]
    return bins


def _deal(bins: list[list[int]], costs: Sequence[float], ranks: int) -> list[list[list[int]]]:
    """Give each rank one bin a round, bins in order of cost."""
    out: list[list[list[int]]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    by_cost = sorted(bins, key=lambda b: -sum(costs[i] for i in b))
    for first in range(0, len(by_cost), ranks):
        lightest = sorted(range(ranks), key=lambda r: (loads[r], r))
        for rank, members in zip(lightest, by_cost[first : first + ranks], strict=True):
            out[rank].append(sorted(members))
            loads[rank] += sum(costs[i] for i in members)
    return out
