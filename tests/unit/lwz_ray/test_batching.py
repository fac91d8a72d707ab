"""From scored groups to train samples: masks by role, global denominators, minibatches, failures."""

from typing import Any

import numpy as np
import pytest

from lwz_ray.batching import advantages_of, failed_component, minibatches_of, reward_arrays, train_sample

from lwz_ray.errors import RewardFailure
from lwz_ray.records import Completion, FinishReason, Group, ParsedText, Prompt, Sample, VersionSpan
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


def test_only_active_rewards_steer() -> None:
    one = group(sample(1, {"length": 0.0, "writing": FAILED}), sample(1, {"length": 1.0, "writing": FAILED}))
    (advantages,) = advantages_of([one], {"length": 1.0, "writing": 0.0}, algorithm())
    np.testing.assert_array_equal(advantages, [-1.0, 1.0])


def test_prompt_and_completion_are_joined_and_the_mask_is_by_role() -> None:
    joined = train_sample(sample(3, {}), advantage=1.5, token_weight=0.25, masked=False)
    assert joined.token_ids.tolist() == [7, 8, 1, 2, 3]
    assert joined.loss_mask.tolist() == [False, False, True, True, True]
    assert joined.rollout_logprobs.tolist() == [0.0, 0.0, -0.5, -1.0, -1.5]
    assert (joined.num_prompt_tokens, joined.advantage, joined.token_weight) == (2, 1.5, 0.25)
    assert (joined.token_ids.dtype, joined.rollout_logprobs.dtype) == (np.int32, np.float32)
    assert not train_sample(sample(3, {}), 1.5, 0.25, masked=True).loss_mask.any()


FOUR = (
    group(sample(4, {}), sample(2, {}, "length", 1)),
    group(sample(2, {}), sample(8, {}, "stop", 1), group_id=1),
)
ADVANTAGES = [np.array([1.0, -1.0]), np.array([0.5, -0.5])]


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
        # Each minibatch has denominators of its own.
        ({"minibatches": 2}, [[1 / 8, 1 / 4], [1 / 4, 1 / 16]]),
    ],
)
def test_denominators_are_global(changes: dict[str, Any], weights: list[list[float]]) -> None:
    minibatches = minibatches_of(FOUR, ADVANTAGES, algorithm(**changes))
    assert [[s.token_weight for s in m] for m in minibatches] == weights
    assert [s.advantage for m in minibatches for s in m] == [1.0, -1.0, 0.5, -0.5]
    masked = changes.get("truncated") == "mask"
    assert [int(s.loss_mask.sum()) for m in minibatches for s in m] == [4, 0 if masked else 2, 2, 8]


def test_weights_of_trained_tokens_add_up_to_one() -> None:
    for changes in ({}, {"loss_aggregation": "token_mean"}, {"truncated": "mask"}, {"minibatches": 2}):
        for minibatch in minibatches_of(FOUR, ADVANTAGES, algorithm(**changes)):
            assert sum(s.token_weight * s.loss_mask.sum() for s in minibatch) == pytest.approx(1.0)


def test_groups_are_never_torn_by_minibatches() -> None:
    groups = [group(sample(1, {}), sample(2, {}, index=1), group_id=i) for i in range(3)]
    minibatches = minibatches_of(groups, [np.array([i, -i]) for i in (1.0, 2.0, 3.0)], algorithm(minibatches=2))
    assert [[s.advantage for s in m] for m in minibatches] == [[1.0, -1.0, 2.0, -2.0], [3.0, -3.0]]
