"""Packing of preference pairs: layout, each text once, each pair once, budgets."""

from collections.abc import Sequence

import numpy as np
import pytest

from lwz_ray.preferences import EncodedPair, PairBatch, build_pair_batch, split_pairs_over_ranks


def pair(head: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], margin: float = 0.0) -> EncodedPair:
    arrays = [np.array(x, dtype=np.int32) for x in (head, chosen, rejected)]
    return EncodedPair(*arrays, margin=margin, weight=0.25)


def texts(row: PairBatch) -> list[list[int]]:
    """Return each text as the tokens that it attends to: its head, then itself."""
    ids = row.token_ids.tolist()
    by_end = {stop - 1: ids[a:b] + ids[start:stop] for a, b, start, stop in row.segments}
    return [by_end[end] for end in row.ends.tolist()]


def test_the_texts_of_one_head_share_it_and_stand_once() -> None:
    items = [
        pair([10, 11, 12], [1, 2], [3], margin=0.5),
        pair([10, 11, 12], [1, 2], [4, 5, 6]),
        pair([20], [7], [8, 9]),
    ]
    row = build_pair_batch(items, [[0, 1], [2]])
    assert row.token_ids.tolist() == [10, 11, 12, 1, 2, 3, 4, 5, 6, 20, 7, 8, 9]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5, 0, 1, 1, 2]
    assert row.segments == (
        (0, 0, 0, 3), (0, 3, 3, 5), (0, 3, 5, 6), (0, 3, 6, 9), (9, 9, 9, 10), (9, 10, 10, 11), (9, 10, 11, 13),
    )  # fmt: skip
    assert row.ends.tolist() == [4, 5, 8, 10, 12]
    assert (row.chosen.tolist(), row.rejected.tolist()) == ([0, 0, 3], [1, 2, 4])
    assert (row.margins.tolist(), row.weights.tolist()) == ([0.5, 0.0, 0.0], [0.25, 0.25, 0.25])
    assert row.pair_index.tolist() == [0, 1, 2]
    assert (row.num_tokens, row.num_pairs) == (13, 3)


def test_a_text_rejected_in_one_pair_and_chosen_in_another_stands_once() -> None:
    row = build_pair_batch([pair([9], [1], [2]), pair([9], [2], [3, 3])], [[0, 1]])
    assert row.token_ids.tolist() == [9, 1, 2, 3, 3]
    assert (row.chosen.tolist(), row.rejected.tolist()) == ([0, 1], [1, 2])


def test_an_empty_head_is_no_segment() -> None:
    row = build_pair_batch([pair([], [1, 2], [3])], [[0]])
    assert (row.segments, row.position_ids.tolist()) == (((0, 0, 0, 2), (0, 0, 2, 3)), [0, 1, 0])


def test_an_empty_row_is_one_token_without_a_pair() -> None:
    row = build_pair_batch([], [])
    assert (row.num_tokens, row.num_pairs, row.ends.tolist(), row.segments) == (1, 0, [0], ((0, 0, 0, 1),))
    assert [c.dtype for c in (row.chosen, row.pair_index, row.weights)] == [np.int64, np.int64, np.float32]


def test_one_chosen_against_seven_rejected_is_computed_once() -> None:
    items = [pair([1, 2], [3] * 10, [4, i]) for i in range(7)]
    # 2 + 10 + 7 * 2 = 26 tokens instead of 7 * (2 + 10 + 2 + 2) = 112.
    ((row,),) = split_pairs_over_ranks(items, budget=52, ranks=1)
    assert (row.num_tokens, len(row.ends), row.num_pairs) == (26, 8, 7)
    assert sorted(row.pair_index.tolist()) == list(range(7))


def test_a_family_is_cut_at_half_the_budget_and_pairs_of_one_head_meet_from_afar() -> None:
    items = [pair([1], [2, 2], [3]), pair([7], [8], [9]), pair([1], [2, 2], [4]), pair([1], [5], [6, 6, 6])]
    # Head 1: 1 + 2 + 1 = 4, with pair 2 it is 5, with pair 3 it would be 9 > 14 / 2.
    plan = split_pairs_over_ranks(items, budget=14, ranks=2)
    assert [[sorted(r.pair_index.tolist()) for r in rank] for rank in plan] == [[[0, 1, 2]], [[3]]]
    assert [r.num_tokens for rank in plan for r in rank] == [8, 5]


def test_a_text_over_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match="pair 1 has a text of 11 tokens, over the microbatch budget of 10"):
        split_pairs_over_ranks([pair([1], [2], [3]), pair([1] * 3, [2], [3] * 8)], budget=10, ranks=1)


def test_two_texts_that_do_not_fit_together_have_a_row_of_their_own() -> None:
    items = [pair([1], [2] * 9, [3] * 9), pair([4], [5], [6])]
    plan = split_pairs_over_ranks(items, budget=10, ranks=1)
    assert sorted((r.num_tokens, r.pair_index.tolist()) for r in plan[0]) == [(3, [1]), (19, [0])]


@pytest.mark.parametrize("seed", range(20))
def test_each_pair_is_in_one_row_with_its_own_texts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranks, budget = int(rng.integers(1, 4)), int(rng.integers(24, 80))
    heads = [rng.integers(0, 9, rng.integers(0, 5)).tolist() for _ in range(4)]
    answers = [rng.integers(0, 9, rng.integers(1, 8)).tolist() for _ in range(6)]
    picks = rng.integers(0, [4, 6, 6], (int(rng.integers(0, 40)), 3)).tolist()
    items = [pair(heads[h], answers[c], answers[r], margin=float(i)) for i, (h, c, r) in enumerate(picks)]
    plan = split_pairs_over_ranks(items, budget, ranks)

    assert len(plan) == ranks and len({len(rank) for rank in plan}) == 1
    packed = [row for rank in plan for row in rank]
    assert sorted(i for row in packed for i in row.pair_index.tolist()) == list(range(len(items)))
    for row in packed:
        assert row.num_tokens <= budget and len(row.ends) >= 1
        found = texts(row)
        for index, chosen, rejected, margin in zip(row.pair_index, row.chosen, row.rejected, row.margins, strict=True):
            item = items[index]
            assert found[chosen] == [*item.head, *item.chosen] and found[rejected] == [*item.head, *item.rejected]
            assert margin == index
