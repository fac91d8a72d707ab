"""Evaluation: prompts count once, failures count nowhere, differences are paired."""

import json
from typing import Any

import numpy as np
import pytest

from lwz_ray.errors import RewardFailure
from lwz_ray.evaluation import EvalSummary, compare, summarise_evaluation
from lwz_ray.records import Completion, FinishReason, Group, ParsedText, Prompt, Sample, VersionSpan

FAILED = RewardFailure("writing", "timed out", "infrastructure")
WEIGHTS = {"length": 3.0, "format": 1.0, "writing": 0.0}


def sample(
    rewards: Any,
    *,
    index: int = 0,
    words: int = 10,
    answer: str | None = "a b a b",
    finish: FinishReason = "stop",
    well: bool = True,
    span: tuple[int, int] | None = (8, 12),
    measures: dict[str, float] | None = None,
) -> Sample:
    return Sample(
        group_id=index,
        sample_index=0,
        prompt=Prompt(f"p{index}", "Write.", "en", span, index),
        prompt_token_ids=np.array([1], dtype=np.int32),
        completion=Completion(
            "<answer>a b a b</answer>",
            np.array([1, 2], dtype=np.int32),
            np.zeros(2, dtype=np.float32),
            finish,
            (VersionSpan(0, 2, 0),),
        ),
        parsed=ParsedText(None, answer, well, 1.0),
        num_words=words,
        rewards=rewards,
        measures={"repetition": 0.25} if measures is None else measures,
    )


def group(*samples: Sample) -> Group:
    return Group(samples[0].group_id, samples[0].prompt, tuple(samples))


def test_a_sample_cut_by_its_deadline_is_truncated():
    result = summarise_evaluation([group(*(sample({}, finish=f) for f in ("abort", "length", "stop", "stop")))], (), {})
    assert result.numbers["truncated"] == 0.5


def test_means_over_samples_first_and_prompts_second():
    groups = [
        group(sample({"length": 0.0, "format": 1.0}, index=1, words=20, finish="length", well=False)),
        group(
            sample({"length": 1.0, "format": 1.0}, words=10),
            sample({"length": 0.5, "format": 0.0}, words=7),
            sample({"length": 0.0, "format": 1.0}, words=13),
        ),
    ]
    result = summarise_evaluation(groups, ("length", "format"), WEIGHTS)
    assert result.prompt_ids == ("p0", "p1")
    assert result.num_samples == 4
    assert result.failures == {}
    # Totals of p0: (3*1+1)/4 = 1, (3*0.5+0)/4 = 0.375, (0+1)/4 = 0.25, mean 0.541667; of p1: 0.25.
    assert result.numbers == pytest.approx(
        {
            "length": 0.25,
            "format": 0.8333333333,
            "total": 0.3958333333,
            "mean_words": 15.0,
            "in_range": 0.1666666667,
            "well_formed": 0.5,
            "truncated": 0.5,
            "repetition": 0.25,
            "distinct_1": 0.5,
            "distinct_2": 0.6666666667,
        }
    )


def test_the_scorers_own_measure_wins():
    result = summarise_evaluation(
        [group(sample({"length": 1.0}, measures={"distinct_2": 0.125}))], ("length",), WEIGHTS
    )
    assert result.numbers["distinct_2"] == 0.125
    assert "repetition" not in result.numbers


def test_failures_are_counted_and_in_no_mean():
    groups = [
        group(sample({"length": 1.0, "writing": FAILED}), sample({"length": 0.5, "writing": 3.0})),
        group(sample({"length": 0.25, "writing": FAILED}, index=1)),
    ]
    steered = summarise_evaluation(groups, ("length", "writing"), {"length": 1.0, "writing": 1.0})
    assert steered.failures == {"writing": 2}
    np.testing.assert_array_equal(steered.per_prompt["writing"], [3.0, np.nan])
    np.testing.assert_array_equal(steered.per_prompt["total"], [1.75, np.nan])
    assert steered.numbers["length"] == 0.5
    assert steered.numbers["writing"] == 3.0
    # A reward that only is watched takes nothing from the total.
    watched = summarise_evaluation(groups, ("length",), WEIGHTS)
    np.testing.assert_array_equal(watched.per_prompt["total"], [0.75, 0.25])


def test_an_abstaining_reward_leaves_the_rest():
    result = summarise_evaluation([group(sample({"format": 0.5}, span=None))], ("length", "format"), WEIGHTS)
    assert result.numbers["total"] == 0.5
    assert "length" not in result.numbers
    assert "in_range" not in result.numbers


def test_a_missing_answer_repeats_nothing():
    result = summarise_evaluation([group(sample({"format": 0.0}, answer=None))], ("format",), WEIGHTS)
    assert result.numbers["distinct_1"] == 1.0


def test_words_have_one_name():
    measures = {"num_words": 7.0, "segments_found": 0.5}
    result = summarise_evaluation([group(sample({"format": 0.0}, words=7, measures=measures))], ("format",), WEIGHTS)
    assert "num_words" not in result.numbers
    assert (result.numbers["mean_words"], result.numbers["segments_found"]) == (7.0, 0.5)


def test_one_prompt_twice_is_refused():
    one = group(sample({"length": 1.0}))
    with pytest.raises(ValueError, match="1 prompts were evaluated twice"):
        summarise_evaluation([one, one], ("length",), WEIGHTS)
    with pytest.raises(ValueError, match="p0 was evaluated without samples"):
        summarise_evaluation([Group(0, one.prompt, ())], ("length",), WEIGHTS)


def test_compare_pairs_by_prompt():
    before = EvalSummary(("a", "b", "c"), {"length": np.array([0.0, 0.5, np.nan]), "old": np.ones(3)}, 6, {})
    after = EvalSummary(("c", "b", "a"), {"length": np.array([1.0, 0.75, 0.25])}, 6, {"length": 1})
    result = compare(before, after, resamples=200, seed=0)
    assert result["before"] == {"length": 0.25, "old": 1.0}
    assert result["after"] == {"length": pytest.approx(2 / 3)}
    assert result["difference"] == {"length": {"mean": 0.25, "low": 0.25, "high": 0.25}}
    assert result["paired_prompts"] == {"length": 2}
    assert result["num_prompts"] == {"before": 3, "after": 3}
    assert result["num_samples"] == {"before": 6, "after": 6}
    assert result["failures"] == {"before": {}, "after": {"length": 1}}
    assert json.loads(json.dumps(result, allow_nan=False))["difference"]["length"]["low"] == 0.25


def test_round_trip():
    first = EvalSummary(("a", "b"), {"length": np.array([0.5, np.nan])}, 2, {"length": 1})
    second = EvalSummary.from_dict(json.loads(json.dumps(first.as_dict(), allow_nan=False)))
    assert second.prompt_ids == ("a", "b")
    np.testing.assert_array_equal(second.per_prompt["length"], [0.5, np.nan])
    assert (second.num_samples, second.failures) == (2, {"length": 1})
