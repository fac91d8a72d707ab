"""From scored groups to train samples: masks by role, global denominators, minibatches, failures."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lwz_ray.batching import minibatches_of, train_sample, unlabelled_sample
from lwz_ray.credit import Credit
from lwz_ray.errors import RewardFailure
from lwz_ray.records import Completion, FinishReason, Group, ParsedText, Prompt, Sample, TokenFacts, VersionSpan
from lwz_ray.steering import failed_component, is_masked, reward_arrays
from tests.algorithms import algorithm

PROMPT = Prompt("p", "Write.", "en", None, 0)
FAILED = RewardFailure("writing", "replica 1 died", "infrastructure")


def sample(num_tokens: int, rewards: dict[str, Any], finish_reason: FinishReason = "stop", index: int = 0) -> Sample:
    """Return a sample with prompt [7, 8] and completion 1, 2, …, whose logprobs are -0.5, -1, …"""
    ids = np.arange(1, num_tokens + 1, dtype=np.int32)
    completion = Completion("x", ids, -0.5 * ids.astype(np.float32), finish_reason, (VersionSpan(0, num_tokens, 0),))
    parsed = ParsedText(None, "x", True, 1.0)
    return Sample(0, index, PROMPT, np.array([7, 8], dtype=np.int32), completion, parsed, 1, rewards)


def group(*samples: Sample, group_id: int = 0) -> Group:
    return Group(group_id, PROMPT, samples)


def test_rewards_become_arrays_with_nan_where_a_sample_abstains() -> None:
    arrays = reward_arrays(
        group(sample(1, {"length": 0.5, "format": 1.0}), sample(1, {"format": 0.0})), ["length", "format"]
    )
    np.testing.assert_array_equal(arrays["length"], [0.5, np.nan])
    np.testing.assert_array_equal(arrays["format"], [1.0, 0.0])


def test_a_failed_reward_is_found_and_never_a_number() -> None:
    failed = group(
        sample(1, {"format": 1.0, "writing": 0.3}), sample(1, {"format": 1.0, "writing": FAILED}), group_id=4
    )
    assert failed_component(failed, ["format", "writing"]) == FAILED
    assert failed_component(failed, ["format"]) is None  # a reward that steers nothing takes nothing away
    with pytest.raises(ValueError, match="group 4: reward writing failed: replica 1 died"):
        reward_arrays(failed, ["writing"])


def test_prompt_and_completion_are_joined_and_the_mask_is_by_role() -> None:
    credit = Credit(np.array([1.5, 0.5, -1.0]))
    joined = train_sample(sample(3, {}), credit, token_weight=0.25, masked=False)
    assert joined.token_ids.tolist() == [7, 8, 1, 2, 3]
    assert joined.loss_mask.tolist() == [False, False, True, True, True]
    assert joined.rollout_logprobs.tolist() == [0.0, 0.0, -0.5, -1.0, -1.5]
    assert joined.advantages.tolist() == [0.0, 0.0, 1.5, 0.5, -1.0]
    assert (joined.num_prompt_tokens, joined.token_weight, joined.returns, joined.token_ages) == (2, 0.25, None, None)
    assert (joined.token_ids.dtype, joined.rollout_logprobs.dtype) == (np.int32, np.float32)
    masked = train_sample(sample(3, {}), credit, 0.25, masked=True)
    assert not masked.loss_mask.any() and not masked.advantages.any()


def test_what_is_to_be_annotated_has_every_completion_token_in_its_mask() -> None:
    asked = unlabelled_sample(sample(3, {}, "length"))
    assert asked.loss_mask.tolist() == [False, False, True, True, True]
    assert (asked.advantages.any(), asked.token_weight, asked.facts) == (False, 0.0, None)


def test_returns_facts_and_ages_are_laid_beside_the_tokens() -> None:
    old = sample(4, {})
    completion = replace(old.completion, version_spans=(VersionSpan(0, 1, 3), VersionSpan(1, 4, 5)))
    facts = TokenFacts(values=np.zeros(6, np.float32))
    credit = Credit(np.zeros(4), returns=np.array([4.0, 3.0, 2.0, 1.0]))
    joined = train_sample(replace(old, completion=completion), credit, 0.25, False, facts, policy_version=6)
    assert joined.token_ages is not None and joined.returns is not None
    assert joined.token_ages.tolist() == [0, 0, 3, 1, 1, 1] and joined.token_ages.dtype == np.int32
    assert joined.returns.tolist() == [0.0, 0.0, 4.0, 3.0, 2.0, 1.0] and joined.returns.dtype == np.float32
    assert joined.facts is facts


FOUR = (
    group(sample(4, {}), sample(2, {}, "length", 1)),
    group(sample(2, {}), sample(8, {}, "stop", 1), group_id=1),
)


def credits_of(*rows: tuple[float, ...]) -> list[list[Credit]]:
    """Return one number for each sample of each group of FOUR's sizes, spread over its tokens."""
    return [
        [Credit(np.full(n, a)) for n, a in zip(sizes, row, strict=True)] for sizes, row in zip(SIZES, rows, strict=True)
    ]


SIZES = ((4, 2), (2, 8))
CREDITS = credits_of((1.0, -1.0), (0.5, -0.5))
LIMIT = 10


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        # 1 / (4 samples * tokens)
        ({}, [[1 / 16, 1 / 8, 1 / 8, 1 / 32]]),
        # 1 / (4 + 2 + 2 + 8) tokens
        ({"loss_aggregation": "token_mean"}, [[1 / 16] * 4]),
        # The sample that was cut off is out: 1 / (3 * tokens), and 1 / (4 + 2 + 8)
        ({"truncated": "mask"}, [[1 / 12, 0.0, 1 / 6, 1 / 24]]),
        ({"truncated": "mask", "loss_aggregation": "token_mean"}, [[1 / 14, 0.0, 1 / 14, 1 / 14]]),
        # 1 / (4 samples * the limit), the same for all
        ({"loss_aggregation": "fixed_length"}, [[1 / 40] * 4]),
        # Each minibatch has denominators of its own.
        ({"minibatches": 2}, [[1 / 8, 1 / 4], [1 / 4, 1 / 16]]),
    ],
)
def test_denominators_are_global(changes: dict[str, Any], weights: list[list[float]]) -> None:
    minibatches = minibatches_of(FOUR, CREDITS, None, algorithm(**changes), LIMIT)
    assert [[s.token_weight for s in m] for m in minibatches] == weights
    masked = changes.get("truncated") == "mask"
    assert [s.advantages[-1] for m in minibatches for s in m] == [1.0, 0.0 if masked else -1.0, 0.5, -0.5]
    assert [int(s.loss_mask.sum()) for m in minibatches for s in m] == [4, 0 if masked else 2, 2, 8]


def test_weights_of_trained_tokens_add_up_to_one() -> None:
    choices: list[dict[str, Any]] = [{}, {"loss_aggregation": "token_mean"}, {"truncated": "mask"}, {"minibatches": 2}]
    for changes in choices:
        for minibatch in minibatches_of(FOUR, CREDITS, None, algorithm(**changes), LIMIT):
            assert sum(s.token_weight * s.loss_mask.sum() for s in minibatch) == pytest.approx(1.0)


def test_groups_are_never_torn_by_minibatches() -> None:
    groups = [group(sample(1, {}), sample(2, {}, index=1), group_id=i) for i in range(3)]
    credits = [[Credit(np.full(1, a)), Credit(np.full(2, -a))] for a in (1.0, 2.0, 3.0)]
    minibatches = minibatches_of(groups, credits, None, algorithm(minibatches=2), LIMIT)
    assert [[s.advantages[-1] for s in m] for m in minibatches] == [[1.0, -1.0, 2.0, -2.0], [3.0, -3.0]]


def test_an_epoch_goes_through_the_same_minibatches_again() -> None:
    once = minibatches_of(FOUR, CREDITS, None, algorithm(minibatches=2), LIMIT)
    thrice = minibatches_of(FOUR, CREDITS, None, algorithm(minibatches=2, epochs=3), LIMIT)
    assert [[s.token_weight for s in m] for m in thrice] == 3 * [[s.token_weight for s in m] for m in once]
    assert thrice[2] is thrice[0]


def test_facts_go_with_their_samples() -> None:
    facts = [[TokenFacts(old_logprobs=np.full(n + 2, float(n), np.float32)) for n in sizes] for sizes in SIZES]
    minibatches = minibatches_of(FOUR, CREDITS, facts, algorithm(minibatches=2), LIMIT, policy_version=1)
    found = [[s.facts.old_logprobs[0] for s in m if s.facts and s.facts.old_logprobs is not None] for m in minibatches]
    assert found == [[4.0, 2.0], [2.0, 8.0]]
    assert [s.token_ages.tolist() for m in minibatches for s in m if s.token_ages is not None][1] == [0, 0, 1, 1]


@pytest.mark.parametrize(("finish", "out"), [("stop", False), ("repetition", False), ("length", True), ("abort", True)])
def test_samples_cut_by_the_limit_or_their_deadline_can_be_left_out(finish: Any, out: bool) -> None:
    assert is_masked(sample(3, {}, finish), algorithm(truncated="mask")) is out
    assert not is_masked(sample(3, {}, finish), algorithm(truncated="train"))
