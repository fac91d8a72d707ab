"""Measures of texts by hand, and the means and intervals that they go into."""

import math

import numpy as np
import pytest

from lwz_ray.benchmarks.means import GroupMeans, means_of, request_means
from lwz_ray.benchmarks.texts_measures import MEASURES, measure
from rewards.repetition import repetition
from tests.benchmark_parts import arena, length_benchmark, words, written


def test_measures_by_hand() -> None:
    benchmark = length_benchmark(100, 10, 50, 40)
    loop = "one two three four " * 10
    texts = [
        written("0", words(150), think="A plan.", num_think_tokens=30),
        written("1", loop),  # 40 words; 37 four-grams, of which 4 are new: 33 / 37 repeated
        written("2", "", completion=loop, finish_reason="repetition", well_formed=False),
        written("3", words(36), finish_reason="length"),
        written("3", words(48), sample_index=1, think="Plans.", num_think_tokens=10),
    ]
    found = measure(benchmark, texts, lambda text: repetition(text, 4), 0.5, resamples=200, seed=1)
    per_request = {name: values.tolist() for name, values in found.per_request.items()}
    assert list(per_request) == list(MEASURES)
    assert per_request["num_words"] == [150, 40, 0, 42]
    assert per_request["length_ratio"] == pytest.approx([1.5, 4.0, 0.0, 1.05])
    assert per_request["length_error"] == pytest.approx([0.5, 3.0, 1.0, 0.15])  # of 0.9 and 1.2: 0.1 and 0.2
    assert per_request["repetition"] == pytest.approx([0.0, 33 / 37, 33 / 37, 0.0])
    assert per_request["distinct_1"] == pytest.approx([1.0, 0.1, 0.1, 1.0])
    assert per_request["distinct_2"] == pytest.approx([1.0, 4 / 39, 4 / 39, 1.0])
    assert per_request["distinct_4"] == pytest.approx([1.0, 4 / 37, 4 / 37, 1.0])
    assert per_request["think_tokens"][0] == 30
    assert math.isnan(per_request["think_tokens"][1])  # no plan is not a plan of 0 tokens
    assert per_request["think_tokens"][3] == 10
    assert per_request["degenerated"] == [0, 1, 1, 0]
    assert per_request["truncated"] == [0, 0, 0, 0.5]
    assert per_request["well_formed"] == [1, 1, 0, 1]
    assert per_request["empty"] == [0, 0, 1, 0]
    assert found.overall["degenerated"]["all"]["mean"] == 0.5
    assert found.overall["think_tokens"]["all"]["mean"] == 20.0
    assert found.overall["think_tokens"]["all"]["num_requests"] == 2
    assert found.overall["repetition"]["language"]["en"]["mean"] == pytest.approx(33 / 74)
    assert found.overall["num_texts"] == 5


def test_what_has_no_word_or_no_required_length() -> None:
    found = measure(arena("1"), [written("1", "", completion="")], lambda text: 1.0, 0.5, resamples=20, seed=1)
    for name in ("repetition", "distinct_1", "length_ratio", "length_error", "think_tokens"):
        assert math.isnan(found.per_request[name][0])
        assert found.overall[name]["all"] is None
    assert found.per_request["empty"].tolist() == [1.0]
    assert found.per_request["degenerated"].tolist() == [0.0]


def test_a_looping_engine_is_degeneration_whatever_is_measured() -> None:
    texts = [written("0", words(20), finish_reason="repetition"), written("1", words(20))]
    found = measure(length_benchmark(20, 20), texts, lambda text: 0.49, 0.5, resamples=20, seed=1)
    assert found.per_request["degenerated"].tolist() == [1.0, 0.0]
    found = measure(length_benchmark(20, 20), texts, lambda text: 0.5, 0.5, resamples=20, seed=1)
    assert found.per_request["degenerated"].tolist() == [1.0, 1.0]


def test_group_means_weigh_values_and_draw_requests() -> None:
    groups = GroupMeans(2)
    for value in (0.0, 0.0, 0.0):
        groups.add("g", 0, value)
    groups.add("g", 1, 1.0)
    groups.add("g", 1, math.nan)
    found = groups.result(resamples=2000, seed=1)["g"]
    # Draws of two requests: both the first (0), both the second (1), one of each (1 / 4).
    assert found == {"mean": 0.25, "low": 0.0, "high": 1.0, "num_requests": 2, "num_values": 4}
    assert GroupMeans(2).result(10, 1) == {}


def test_means_by_label() -> None:
    values = np.array([1.0, 3.0, np.nan])
    found = means_of({"x": values, "none": np.full(3, np.nan)}, {"kind": ["a", "b", "c"]}, resamples=50, seed=1)
    assert found["x"]["all"]["mean"] == 2.0
    assert {label: one["mean"] for label, one in found["x"]["kind"].items()} == {"a": 1.0, "b": 3.0}
    assert found["none"] == {"all": None, "kind": {}}
    assert request_means(2, [0, 0, 0], [1.0, 2.0, math.nan]).tolist()[0] == 1.5
    assert math.isnan(request_means(2, [0], [1.0])[1])
