"""Packing on small literal rows: layout, what is trained where, and how work is shared out."""

import numpy as np
import pytest

from lwz_ray.packing import assign, build_microbatch, group_by_prompt, split_over_ranks
from lwz_ray.records import TrainSample


def sample(
    prompt: list[int], completion: list[int], masked: tuple[int, ...] = (), advantage: float = 1.0
) -> TrainSample:
    """Return a sample; `masked` completion tokens are not trained, and their rollout logprobs are NaN."""
    n = len(prompt)
    mask = np.array([False] * n + [i not in masked for i in range(len(completion))])
    logprobs = np.array([0.0] * n + [np.nan if i in masked else -0.5 * t for i, t in enumerate(completion)])
    ids = np.array([*prompt, *completion], dtype=np.int32)
    return TrainSample(ids, n, mask, logprobs.astype(np.float32), advantage, 0.25 * advantage)


def test_samples_of_one_prompt_share_its_tokens() -> None:
    first = [sample([10, 11, 12], [1, 2, 3, 4], advantage=1.0), sample([10, 11, 12], [5, 6], advantage=2.0)]
    other = [sample([20], [7, 8], advantage=3.0)]
    row = build_microbatch([first, other])
    assert row.token_ids.tolist() == [10, 11, 12, 1, 2, 3, 4, 5, 6, 20, 7, 8]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 0, 1, 2]
    assert row.segments == ((0, 0, 0, 3), (0, 3, 3, 7), (0, 3, 7, 9), (9, 9, 9, 10), (9, 10, 10, 12))
    # The first token of each completion is predicted at the last token of its prompt.
    assert row.rows.tolist() == [2, 3, 4, 5, 2, 7, 9, 10]
    assert row.targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert row.rollout_logprobs.tolist() == [-0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -3.5, -4.0]
    assert row.advantages.tolist() == [1.0] * 4 + [2.0] * 2 + [3.0] * 2
    assert row.token_weights.tolist() == [0.25] * 4 + [0.5] * 2 + [0.75] * 2
    assert (row.num_tokens, row.num_trained) == (12, 8)


def test_masked_tokens_are_context_and_never_trained() -> None:
    row = build_microbatch([[sample([10, 11], [1, 2, 3], masked=(0, 2)), sample([10, 11], [4], masked=(0,))]])
    assert row.token_ids.tolist() == [10, 11, 1, 2, 3, 4]
    assert (row.rows.tolist(), row.targets.tolist()) == ([2], [2])
    assert row.rollout_logprobs.tolist() == [-1.0]  # the NaN of the masked ones is nowhere


def test_an_empty_microbatch_is_one_untrained_token() -> None:
    row = build_microbatch([])
    assert (row.num_tokens, row.num_trained, row.segments) == (1, 0, ((0, 0, 0, 1),))
    assert [c.dtype for c in (row.rows, row.targets, row.advantages)] == [np.int64, np.int64, np.float32]


def test_families_are_runs_of_one_prompt_up_to_half_the_budget() -> None:
    samples = [sample([1, 2], [9] * 3) for _ in range(5)] + [sample([1, 3], [9] * 3), sample([1, 3, 9], [9] * 2)]
    # 2 + 3 k <= 20 / 2 holds up to k = 2; [1, 3] is another prompt, and so is [1, 3, 9].
    assert group_by_prompt(samples, 20) == [[0, 1], [2, 3], [4], [5], [6]]
    assert group_by_prompt(samples, 100) == [[0, 1, 2, 3, 4], [5], [6]]
    assert group_by_prompt(samples, 6) == [[0], [1], [2], [3], [4], [5], [6]]


def test_work_is_balanced_longest_first() -> None:
    # Total 24 in rows of 12: one microbatch for each of two ranks, 8 + 4 and 6 + 5 + 1.
    assert assign([8, 6, 5, 4, 1], budget=12, ranks=2) == [[[0, 3]], [[1, 2, 4]]]


def test_every_rank_gets_as_many_microbatches() -> None:
    # Three of 7 do not fit two rows of 10: a second round, in which one row stays empty.
    assert assign([7, 7, 7], budget=10, ranks=2) == [[[0], [2]], [[1], []]]
    assert assign([], budget=10, ranks=2) == [[[]], [[]]]


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


def test_a_trained_token_needs_a_token_before_it() -> None:
    with pytest.raises(ValueError, match="the first token of a sample cannot be trained"):
        TrainSample(np.ones(2, np.int32), 0, np.ones(2, bool), np.zeros(2, np.float32), 1.0, 1.0)
    TrainSample(np.ones(2, np.int32), 0, np.array([False, True]), np.zeros(2, np.float32), 1.0, 1.0)
