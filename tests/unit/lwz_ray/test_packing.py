"""Packing on small literal rows: layout, what is trained where, and how work is shared out."""

from typing import Any

import numpy as np
import pytest

from lwz_ray.packing import assign, build_microbatch, group_by_prompt, split_over_ranks
from lwz_ray.packing_cost import family_cost, family_pairs, family_tokens
from lwz_ray.records import TokenFacts, TrainSample


def sample(
    prompt: list[int], completion: list[int], masked: tuple[int, ...] = (), advantage: float = 1.0, **more: Any
) -> TrainSample:
    """Return a sample; `masked` completion tokens are not trained, and their rollout logprobs are NaN."""
    n = len(prompt)
    mask = np.array([False] * n + [i not in masked for i in range(len(completion))])
    logprobs = np.array([0.0] * n + [np.nan if i in masked else -0.5 * t for i, t in enumerate(completion)])
    ids = np.array([*prompt, *completion], dtype=np.int32)
    advantages = np.where(mask, advantage + np.arange(len(ids)) / 16, 0.0).astype(np.float32)
    return TrainSample(ids, n, mask, logprobs.astype(np.float32), advantages, 0.25 * advantage, **more)


def test_samples_of_one_prompt_share_its_tokens() -> None:
    samples = [
        sample([10, 11, 12], [1, 2, 3, 4], advantage=1.0),
        sample([10, 11, 12], [5, 6], advantage=2.0),
        sample([20], [7, 8], advantage=3.0),
    ]
    row = build_microbatch(samples, [[0, 1], [2]])
    assert row.token_ids.tolist() == [10, 11, 12, 1, 2, 3, 4, 5, 6, 20, 7, 8]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 0, 1, 2]
    assert row.segments == ((0, 0, 0, 3), (0, 3, 3, 7), (0, 3, 7, 9), (9, 9, 9, 10), (9, 10, 10, 12))
    # The first token of each completion is predicted at the last token of its prompt.
    assert row.rows.tolist() == [2, 3, 4, 5, 2, 7, 9, 10]
    assert row.targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert row.rollout_logprobs.tolist() == [-0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -3.5, -4.0]
    assert row.advantages.tolist() == [1.1875, 1.25, 1.3125, 1.375, 2.1875, 2.25, 3.0625, 3.125]
    assert row.token_weights.tolist() == [0.25] * 4 + [0.5] * 2 + [0.75] * 2
    assert (row.sample_of.tolist(), row.sample_index.tolist()) == ([0, 0, 0, 0, 1, 1, 2, 2], [0, 1, 2])
    assert (row.num_tokens, row.num_trained, row.num_samples) == (12, 8, 3)


def test_a_row_knows_which_samples_of_the_list_are_in_it() -> None:
    samples = [sample([10], [1, 2], source=3), sample([20], [3], source=4), sample([30], [4, 5], source=5)]
    row = build_microbatch(samples, [[2], [0]])
    assert (row.targets.tolist(), row.sample_of.tolist()) == ([4, 5, 1, 2], [0, 0, 1, 1])
    assert (row.sample_index.tolist(), row.sample_source.tolist()) == ([2, 0], [5, 3])
    assert build_microbatch(samples, []).sample_source.tolist() == []


def test_masked_tokens_are_context_and_never_trained() -> None:
    samples = [sample([10, 11], [1, 2, 3], masked=(0, 2)), sample([10, 11], [4], masked=(0,))]
    row = build_microbatch(samples, [[0, 1]])
    assert row.token_ids.tolist() == [10, 11, 1, 2, 3, 4]
    assert (row.rows.tolist(), row.targets.tolist()) == ([2], [2])
    assert row.rollout_logprobs.tolist() == [-1.0]  # the NaN of the masked ones is nowhere
    assert (row.num_samples, row.sample_of.tolist()) == (2, [0])


def test_facts_ages_and_returns_go_with_their_tokens() -> None:
    def column(*values: float) -> np.ndarray:
        return np.array(values, dtype=np.float32)

    facts = TokenFacts(old_logprobs=column(0, -1, -2), ref_logprobs=column(0, -3, -4), values=column(0, 5, 6))
    ages, returns = np.array([0, 2, 1], np.int32), column(0, 7, 8)
    row = build_microbatch([sample([10], [1, 2], facts=facts, token_ages=ages, returns=returns)], [[0]])
    columns = (row.old_logprobs, row.ref_logprobs, row.values, row.returns, row.token_ages)
    assert [None if c is None else c.tolist() for c in columns] == [[-1, -2], [-3, -4], [5, 6], [7, 8], [2, 1]]
    bare = build_microbatch([sample([10], [1, 2])], [[0]])
    assert (bare.old_logprobs, bare.ref_logprobs, bare.values, bare.returns) == (None, None, None, None)
    assert bare.token_ages.tolist() == [0, 0]


def test_a_column_that_only_some_samples_carry_is_named() -> None:
    samples = [sample([10], [1], facts=TokenFacts(old_logprobs=np.zeros(2, np.float32))), sample([20], [2])]
    with pytest.raises(ValueError, match="some samples of a microbatch have old_logprobs and some have not"):
        build_microbatch(samples, [[0], [1]])


def test_an_empty_microbatch_is_one_untrained_token() -> None:
    row = build_microbatch([], [])
    assert (row.num_tokens, row.num_trained, row.num_samples, row.segments) == (1, 0, 0, ((0, 0, 0, 1),))
    assert [c.dtype for c in (row.rows, row.targets, row.advantages)] == [np.int64, np.int64, np.float32]


def test_families_are_runs_of_one_prompt_up_to_half_the_budget() -> None:
    samples = [sample([1, 2], [9] * 3) for _ in range(5)] + [sample([1, 3], [9] * 3), sample([1, 3, 9], [9] * 2)]
    # 2 + 3 k <= 20 / 2 holds up to k = 2; [1, 3] is another prompt, and so is [1, 3, 9].
    assert group_by_prompt(samples, 20) == [[0, 1], [2, 3], [4], [5], [6]]
    assert group_by_prompt(samples, 100) == [[0, 1, 2, 3, 4], [5], [6]]
    assert group_by_prompt(samples, 6) == [[0], [1], [2], [3], [4], [5], [6]]


def test_the_cost_of_a_family_counts_the_prompt_with_every_completion() -> None:
    # Prompt of 3 with completions of 4, 2 and 0 tokens: pairs 1 + 2 + 3, and those of 7 and of 5 tokens.
    samples = [sample([10, 11, 12], [1, 2, 3, 4]), sample([10, 11, 12], [5, 6]), sample([10, 11, 12], [])]
    assert (family_tokens(samples, [0, 1, 2]), family_pairs(samples, [0, 1, 2])) == (9, 6 + 28 + 15)
    assert family_cost(samples, [0, 1, 2], 0.5) == 9 + 24.5
    assert family_cost(samples, [1], 0.0) == 5


def test_work_is_balanced_longest_first() -> None:
    # Total 24 in rows of 12: one microbatch for each of two ranks, 8 + 4 and 6 + 5 + 1.
    assert assign([8, 6, 5, 4, 1], budget=12, ranks=2) == [[[0, 3]], [[1, 2, 4]]]


def test_every_rank_gets_as_many_microbatches() -> None:
    # Three of 7 do not fit two rows of 10: a second round, in which one row stays empty.
    assert assign([7, 7, 7], budget=10, ranks=2) == [[[0], [2]], [[1], []]]
    assert assign([], budget=10, ranks=2) == [[[]], [[]]]


def test_microbatches_of_one_round_are_alike() -> None:
    # Ranks wait for each other in every round: 9 stands beside 8 and 2 beside 1, the 9 and the 1 on one rank.
    assert assign([9, 2, 8, 1], budget=9, ranks=2) == [[[0], [3]], [[2], [1]]]


def test_where_balance_leaves_no_room_rows_are_filled() -> None:
    # Balanced, 5 + 4 and 5 + 4 leave no room for the 2 in rows of 10; filled, 5 + 5 and 4 + 4 + 2 take no third row.
    assert assign([2, 5, 4, 5, 4], budget=10, ranks=1) == [[[1, 3], [0, 2, 4]]]


def test_a_sample_over_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match="item 1 has 11 tokens, over the microbatch budget of 10"):
        assign([3, 11], budget=10, ranks=1)


def test_a_batch_over_two_ranks() -> None:
    samples = [sample([10, 11], [1, 2, 3]), sample([10, 11], [4, 5]), sample([20], [6, 7, 8, 9])]
    ranks = split_over_ranks(samples, budget=14, ranks=2)
    assert [[m.token_ids.tolist() for m in rank] for rank in ranks] == [
        [[10, 11, 1, 2, 3, 4, 5]],  # 2 + 3 + 2 = 7, the prompt once
        [[20, 6, 7, 8, 9]],
    ]
    assert [[m.sample_index.tolist() for m in rank] for rank in ranks] == [[[0, 1]], [[2]]]


def test_one_long_sample_is_balanced_by_cost_where_tokens_mislead() -> None:
    # 1 + 599 tokens, and 24 times 1 + 49: by tokens 900 on each rank, by cost the long one's pairs weigh more.
    samples = [sample([1], [7] * 599)] + [sample([2 + i], [7] * 49) for i in range(24)]

    def loads(attention_cost: float) -> tuple[list[int], list[float]]:
        plan = split_over_ranks(samples, 2000, 2, attention_cost)
        indices = [[int(i) for row in rank for i in row.sample_index] for rank in plan]
        tokens = [sum(samples[i].num_tokens for i in rank) for rank in indices]
        return tokens, [sum(family_cost(samples, [i], 0.01) for i in rank) for rank in indices]

    # At 0.01 a pair, of which a one-token prompt has one: 600 + 1803.01 for the long one, 50 + 12.76 for a short one.
    (tokens, costs), (other_tokens, other_costs) = loads(0.0), loads(0.01)
    assert (tokens, costs) == ([900, 900], pytest.approx([2779.57, 1129.68]))  # the long one and 6 short ones; 18
    assert (other_tokens, other_costs) == ([600, 1200], pytest.approx([2403.01, 1506.24]))  # alone; 24


def test_packing_again_packs_the_same() -> None:
    rng = np.random.default_rng(3)
    samples = [sample([i // 4], rng.integers(0, 99, n).tolist()) for i, n in enumerate(rng.integers(1, 60, 40))]
    first, second = (split_over_ranks(samples, 200, 3, 0.02) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert [r.sample_index.tolist() for r in one] == [r.sample_index.tolist() for r in other]
        assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(one, other, strict=True))


def test_a_trained_token_needs_a_token_before_it() -> None:
    nothing = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="the first token of a sample cannot be trained"):
        TrainSample(np.ones(2, np.int32), 0, np.ones(2, bool), nothing, nothing, 1.0)
    TrainSample(np.ones(2, np.int32), 0, np.array([False, True]), nothing, nothing, 1.0)
