"""The watch for reward games, on groups small enough to work out by hand."""

import math
import zlib
from typing import Any

import numpy as np
import pytest

from launch.compose import compose
from lwz_ray.evaluation import EvalSummary
from lwz_ray.records import Completion, Group, ParsedText, Prompt, Sample, VersionSpan
from lwz_ray.text import count_words
from lwz_ray.watch import alarms, compression_ratio, copied_share, drift, opening_entropy, watch_metrics

PROMPT = Prompt("p", "Write about the old harbour town in autumn.", "en", (4, 8), 0)
ROUND = "the boats come home at night. " * 40
EQUAL = {"length": 1.0, "format": 1.0}


def group(*rows: tuple[str, dict[str, Any]], think: str | None = None) -> Group:
    samples = []
    for i, (answer, rewards) in enumerate(rows):
        completion = Completion(answer, np.zeros(3, np.int32), np.zeros(3, np.float32), "stop", (VersionSpan(0, 3, 0),))
        parsed = ParsedText(think, answer, True, 1.0)
        words = count_words(answer)
        samples.append(Sample(0, i, PROMPT, np.zeros(1, np.int32), completion, parsed, words, rewards))
    return Group(0, PROMPT, tuple(samples))


def test_a_reward_that_follows_length_is_seen_within_groups() -> None:
    one = group(("a b", {"format": 0.2}), ("a b c d", {"format": 0.4}), ("a b c d e f", {"format": 0.6}))
    # In another group everything is longer and better by 100: centring takes that away.
    two = group(("x " * 102, {"format": 9.6}), ("x " * 104, {"format": 9.4}), ("x " * 106, {"format": 9.2}))
    assert watch_metrics([one], {"format": 1.0})["watch/format_length_correlation"] == pytest.approx(1.0)
    assert watch_metrics([one, two], {"format": 1.0})["watch/format_length_correlation"] == pytest.approx(0.0)


def test_rewards_against_each_other_and_who_drives() -> None:
    rows = [
        ("one two", {"length": 0.0, "format": 1.0}),
        ("one two", {"length": 1.0, "format": 0.0}),
        ("one two", {"length": 0.0, "format": 1.0}),
        ("one two", {"length": 1.0, "format": 0.0}),
    ]
    found = watch_metrics([group(*rows)], {"length": 3.0, "format": 1.0})
    assert found["watch/length_format_correlation"] == pytest.approx(-1.0)
    # Both normalise to plus or minus 1; the weights 3 and 1 decide.
    assert found["watch/length_driver"] == pytest.approx(0.75) and found["watch/format_driver"] == pytest.approx(0.25)
    assert "watch/length_length_correlation" not in found  # all answers are equally long: nothing to correlate
    flat = group(("a", {"length": 1.0, "format": 1.0}), ("b", {"length": 1.0, "format": 1.0}))
    assert "watch/length_driver" not in watch_metrics([flat], EQUAL)


def test_texts_are_measured() -> None:
    assert compression_ratio(ROUND) == len(ROUND) / len(zlib.compress(ROUND.encode(), 6)) > 15
    assert opening_entropy(["Once upon a time", "Once upon a day"]) == 0.0  # the first three words are the same
    assert opening_entropy(["A b c", "B c d", "A b c", "B c d"]) == pytest.approx(math.log(2) / math.log(4))
    assert opening_entropy(["only one", ""]) is None
    copied = group(("Write about the old pier and more", {})).samples[0]
    assert copied_share(copied) == pytest.approx(1 / 4)  # "write about the old" of four 4-grams
    assert copied_share(group(("too short", {})).samples[0]) is None


def test_think_lengths_and_sameness_of_a_group() -> None:
    same = group(("a b c d e", {}), ("a b c d e", {}), think="plan it well")
    found = watch_metrics([same], EQUAL)
    assert found["watch/think_words"] == 3.0
    assert found["watch/group_distinct_4"] == 0.5  # two different 4-grams of four
    assert "watch/think_words" not in watch_metrics([group(("a b c d e", {}))], EQUAL)


def test_drift_is_the_rise_beyond_the_second_scorer() -> None:
    def evaluation(writing: list[float], judge: list[float]) -> EvalSummary:
        return EvalSummary(("a", "b"), {"writing": np.array(writing), "judge": np.array(judge)}, 2, {})

    before = evaluation([0.0, 2.0], [0.4, 0.6])  # standard deviations 1 and 0.1
    after = evaluation([3.0, 3.0], [0.5, 0.6])  # rises 2 and 0.05
    assert drift(before, after, "judge") == pytest.approx(2.0 - 0.5)
    assert drift(before, after, "function") is None
    assert drift(evaluation([1.0, 1.0], [0.4, 0.6]), after, "judge") is None


def test_alarms_name_the_metric_the_value_and_the_limit() -> None:
    limits = compose([]).watch
    calm = {"rollout/distinct_2": 0.9, "watch/opening_entropy": 0.9, "watch/writing_length_correlation": -0.3}
    assert alarms(calm, limits, ("length", "writing")) == []
    loud = {
        "rollout/distinct_2": 0.2,
        "watch/compression_ratio": 9.0,
        "watch/opening_entropy": 0.1,
        "watch/copied_from_prompt": 0.6,
        "watch/writing_length_correlation": -0.95,
        "watch/length_length_correlation": 0.99,  # the length reward may follow length
        "watch/format_driver": 0.99,  # not active
        "rewards/writing_no_spread": 1.0,
        "eval/drift": 1.5,
    }
    found = alarms(loud, limits, ("length", "writing"))
    assert {a.key for a in found} == set(loud) - {"watch/length_length_correlation", "watch/format_driver"}
    ratio = next(a for a in found if a.key == "watch/compression_ratio")
    assert "watch/compression_ratio 9.000, limit 4" in ratio.message
    learned = {"rewards/format": 0.99, "rewards/format_no_spread": 1.0}
    assert alarms(learned, limits, ("length", "format")) == []  # nothing is left to tell apart
    stuck = learned | {"rewards/format": 0.0}
    assert [a.key for a in alarms(stuck, limits, ("length", "format"))] == ["rewards/format_no_spread"]
    assert not list(alarms({"watch/length_driver": 1.0}, limits, ("length",)))  # alone it cannot but drive
