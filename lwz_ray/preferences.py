"""Preference pairs, packed for training a reward model: each distinct text of a prompt is computed once.

row       p0 p0 p0 │ a a a a │ b b b │ c c c │ p1 p1 │ d d d │ e e e e
ends                        ^       ^       ^                 ^         ^   where the scalar is read
pairs     (a, b) (a, c)                        (d, e)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lwz_ray.packing import Segment, TokenRow, assign


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one request, the first preferred."""

    prompt: str
    chosen: str
    rejected: str
    source: str
    """Pairs of one source stay on one side of a split."""
    margin: float = 0.0
    kind: str | None = None
    """What is wrong with the rejected one, where the data says so."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A pair as tokens; `head` is shared, `chosen` and `rejected` hold the answer and the closing of its turn."""

    head: np.ndarray
    """int32 [num_head]"""
    chosen: np.ndarray
    """int32 [num_chosen], at least 1"""
    rejected: np.ndarray
    """int32 [num_rejected], at least 1"""
    margin: float
    weight: float
    """What the pair's loss is multiplied by: 1 / (pairs of the optimizer batch), so that losses simply add up."""


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """One packed row of texts, and the pairs among them."""

    token_ids: np.ndarray
    """int64 [num_tokens]"""
    position_ids: np.ndarray
    """int64 [num_tokens]"""
    segments: tuple[Segment, ...]
    ends: np.ndarray
    """int64 [num_texts]: the last position of each text, where its score is read"""
    chosen: np.ndarray
    """int64 [num_pairs]: index into `ends`"""
    rejected: np.ndarray
    """int64 [num_pairs]"""
    margins: np.ndarray
    """float32 [num_pairs]"""
    weights: np.ndarray
    """float32 [num_pairs]"""
    pair_index: np.ndarray
    """int64 [num_pairs]: position of the pair in what was packed"""

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_pairs(self) -> int:
        return int(self.chosen.shape[0])


def split_pairs_over_ranks(pairs: Sequence[EncodedPair], budget: int, ranks: int) -> list[list[PairBatch]]:
    """Return each rank's microbatches of one optimizer batch; each pair is in exactly one.

    Every rank gets the same number (collectives run in lockstep), each within `budget` tokens, except that a pair whose
    two texts do not fit together has a microbatch of its own: at most twice the budget. Raises ValueError where a
    single text with its head exceeds the budget.
    """
    for index, pair in enumerate(pairs):
        longest = pair.head.size + max(pair.chosen.size, pair.rejected.size)
        if longest > budget:
            raise ValueError(f"pair {index} has a text of {longest} tokens, over the microbatch budget of {budget}")
    families = list(_families(pairs, budget))
    # The weight of a family over the budget is the budget: it fills its microbatch, and nothing joins it.
    plan = assign([min(_num_tokens(pairs, f), budget) for f in families], budget, ranks)
    return [[build_pair_batch(pairs, [families[f] for f in members]) for members in rank] for rank in plan]


def build_pair_batch(pairs: Sequence[EncodedPair], families: Sequence[Sequence[int]]) -> PairBatch:
    """Lay out families, indices of pairs that share a head; none gives one token, so that a rank keeps in step."""
    row = TokenRow()
    ends: list[int] = []
    chosen: list[int] = []
    rejected: list[int] = []
    for family in families:
        head = pairs[family[0]].head
        start = row.size
        row.append(head, 0, (start, start))
        seen: dict[bytes, int] = {}
        for index in family:
            for text, column in ((pairs[index].chosen, chosen), (pairs[index].rejected, rejected)):
                key = _key(text)
                if key not in seen:
                    row.append(text, head.size, (start, start + head.size))
                    seen[key] = len(ends)
                    ends.append(row.size - 1)
                column.append(seen[key])
    if not families:
        row.append(np.zeros(1, np.int64), 0, (0, 0))
        ends.append(0)
    members = [i for family in families for i in family]
    return PairBatch(
        *row.columns(),
        np.array(ends, np.int64),
        np.array(chosen, np.int64),
        np.array(rejected, np.int64),
        np.array([pairs[i].margin for i in members], np.float32),
        np.array([pairs[i].weight for i in members], np.float32),
        np.array(members, np.int64),
    )


def _families(pairs: Sequence[EncodedPair], budget: int) -> Iterator[list[int]]:
    """Yield indices of pairs that share a head, each family at most half the budget unless it is one pair.

    Half, so that families can still be balanced over microbatches and ranks. Pairs of one chosen text stand together,
    so that as few texts as possible are in two families.
    """
    heads: dict[bytes, dict[bytes, list[int]]] = {}
    for index, pair in enumerate(pairs):
        heads.setdefault(_key(pair.head), {}).setdefault(_key(pair.chosen), []).append(index)
    for by_chosen in heads.values():
        family: list[int] = []
        texts: set[bytes] = set()
        size = 0
        for index in (i for members in by_chosen.values() for i in members):
            pair = pairs[index]
            own = {_key(t): t.size for t in (pair.chosen, pair.rejected)}
            added = sum(n for key, n in own.items() if key not in texts)
            if family and size + added > budget // 2:
                yield family
                family, texts, size = [], set(), 0
            if not family:
                size, added = pair.head.size, sum(own.values())
            family.append(index)
            texts |= own.keys()
            size += added
        yield family


def _num_tokens(pairs: Sequence[EncodedPair], family: Sequence[int]) -> int:
    texts = {_key(t): t.size for i in family for t in (pairs[i].chosen, pairs[i].rejected)}
    return pairs[family[0]].head.size + sum(texts.values())


def _key(token_ids: np.ndarray) -> bytes:
    return token_ids.astype(np.int32).tobytes()
