"""Laws of packing that hold for any batch, budget and number of ranks."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lwz_ray.packing import Microbatch, assign, split_over_ranks
from lwz_ray.records import TrainSample


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[TrainSample], int]:
    """Draw samples, neighbours often with one prompt, and a budget that holds the longest."""
    samples: list[TrainSample] = []
    for family in range(draw(st.integers(1, 5))):
        prompt = [family * 50 + i for i in range(draw(st.integers(1, 6)))]
        for _ in range(draw(st.integers(1, 4))):
            completion = draw(st.lists(st.integers(0, 999), max_size=8))
            trained = draw(st.lists(st.booleans(), min_size=len(completion), max_size=len(completion)))
            k = len(samples) + 1
            samples.append(
                TrainSample(
                    np.array(prompt + completion, dtype=np.int32),
                    len(prompt),
                    np.array([False] * len(prompt) + trained),
                    # Each value names its sample and position, so that one in a wrong place is seen.
                    np.array([0.0] * len(prompt) + [-(k + i / 16) for i in range(len(completion))], dtype=np.float32),
                    np.array([0.0] * len(prompt) + [k + i / 16 for i in range(len(completion))], dtype=np.float32),
                    1.0 / 2**k,
                )
            )
    longest = max(s.num_tokens for s in samples)
    return samples, draw(st.integers(longest, longest + 40))


def wanted(samples: list[TrainSample]) -> Counter:
    """Return every trained token as (text before it, token, logprob, advantage, weight)."""
    return Counter(
        (
            tuple(s.token_ids[:i].tolist()),
            int(s.token_ids[i]),
            float(s.rollout_logprobs[i]),
            float(s.advantages[i]),
            s.token_weight,
        )
        for s in samples
        for i in np.flatnonzero(s.loss_mask)
    )


def found(row: Microbatch) -> Counter:
    """Return the same out of a packed row: what a position's model sees is its segment's prefix and itself."""
    seen: Counter = Counter()
    for t in range(row.num_trained):
        at = int(row.rows[t])
        (segment,) = [s for s in row.segments if s[2] <= at < s[3]]
        before = (*row.token_ids[segment[0] : segment[1]].tolist(), *row.token_ids[segment[2] : at + 1].tolist())
        assert row.position_ids[at] == len(before) - 1
        columns = (row.rollout_logprobs[t], row.advantages[t], row.token_weights[t])
        seen[(before, int(row.targets[t]), *map(float, columns))] += 1
    return seen


ATTENTION_COSTS = st.sampled_from([0.0, 0.01, 3.0])


@given(batches(), st.integers(1, 4), ATTENTION_COSTS)
def test_every_trained_token_is_there_once_with_its_own_numbers(
    batch: tuple[list[TrainSample], int], ranks: int, attention_cost: float
) -> None:
    samples, budget = batch
    plan = split_over_ranks(samples, budget, ranks, attention_cost)
    assert sum((found(row) for rank in plan for row in rank), Counter()) == wanted(samples)


@given(batches(), st.integers(1, 4), ATTENTION_COSTS)
def test_each_sample_is_in_one_row_and_its_tokens_say_so(
    batch: tuple[list[TrainSample], int], ranks: int, attention_cost: float
) -> None:
    samples, budget = batch
    rows = [row for rank in split_over_ranks(samples, budget, ranks, attention_cost) for row in rank]
    assert sorted(int(i) for row in rows for i in row.sample_index) == list(range(len(samples)))
    for row in rows:
        for ordinal, index in enumerate(row.sample_index):
            own = samples[int(index)]
            assert row.targets[row.sample_of == ordinal].tolist() == own.token_ids[own.loss_mask].tolist()


@given(batches(), st.integers(1, 4), ATTENTION_COSTS)
def test_no_row_is_over_the_budget_and_ranks_keep_in_step(
    batch: tuple[list[TrainSample], int], ranks: int, attention_cost: float
) -> None:
    samples, budget = batch
    plan = split_over_ranks(samples, budget, ranks, attention_cost)
    assert len(plan) == ranks
    assert len({len(rank) for rank in plan}) == 1
    for row in (row for rank in plan for row in rank):
        assert row.num_tokens <= budget
        covered = [i for *_, start, stop in row.segments for i in range(start, stop)]
        assert covered == list(range(row.num_tokens))
        assert all(a <= b <= start < stop for a, b, start, stop in row.segments)


ITEMS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 900)), max_size=40)
"""(tokens, cost) of each item"""


@given(ITEMS, st.integers(30, 100), st.integers(1, 5))
def test_each_item_is_assigned_once(items: list[tuple[int, int]], budget: int, ranks: int) -> None:
    lengths, costs = [n for n, _ in items], [c for _, c in items]
    plan = assign(lengths, budget, ranks, costs)
    assert plan == assign(lengths, budget, ranks, costs)
    assert sorted(i for rank in plan for row in rank for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= budget for rank in plan for row in rank)
    assert {len(rank) for rank in plan} == {len(plan[0])}


@given(ITEMS, st.integers(30, 100), st.integers(1, 5))
def test_ranks_differ_by_no_more_than_the_costliest_row(items: list[tuple[int, int]], budget: int, ranks: int) -> None:
    plan = assign([n for n, _ in items], budget, ranks, [c for _, c in items])
    rows = [[sum(items[i][1] for i in row) for row in rank] for rank in plan]
    loads = [sum(rank) for rank in rows]
    assert max(loads) - min(loads) <= max(cost for rank in rows for cost in rank)
