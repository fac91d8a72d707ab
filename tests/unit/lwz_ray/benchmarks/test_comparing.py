"""Two evaluations by paired bootstrap, several side by side, and what is not compared."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lwz_ray.benchmarks.comparing import Evaluation, compare, side_by_side
from lwz_ray.benchmarks.records import Benchmark
from lwz_ray.errors import UserError
from tests.benchmark_parts import length_benchmark

BENCHMARK = length_benchmark(100, 200, 300, 400)
NAN = float("nan")


def evaluation(name: str, judge: str = "judge/1", **numbers: list[float]) -> Evaluation:
    return evaluation_of(name, BENCHMARK, {"s_q": judge} if "s_q" in numbers else {}, **numbers)


def evaluation_of(name: str, benchmark: Benchmark, judged: dict[str, str], **numbers: list[float]) -> Evaluation:
    digests = {request.request_id: request.digest for request in benchmark.requests}
    return Evaluation(name, benchmark.name, digests, {key: np.array(v) for key, v in numbers.items()}, judged)


def test_compare_by_hand() -> None:
    before = evaluation("base", s_l=[10, 20, 30, NAN], s_q=[50, 50, 50, 50], old=[1, 1, 1, 1], rare=[1, NAN, NAN, NAN],
                        plans=[NAN] * 4)  # fmt: skip
    after = evaluation("think", s_l=[15, 25, NAN, 40], s_q=[70, 70, 70, 70], new=[1, 1, 1, 1], rare=[NAN, 1, NAN, NAN],
                       plans=[NAN] * 4, old=[NAN] * 4)  # fmt: skip
    found = compare(before, after, resamples=200, seed=1)
    assert found["scores"]["s_l"] == {
        "before": 15.0,
        "after": 20.0,
        "difference": {"mean": 5.0, "low": 5.0, "high": 5.0},
        "num_requests": 2,
    }
    assert found["scores"]["s_q"]["difference"]["mean"] == 20.0
    assert (found["before"], found["after"], found["num_shared"]) == ("base", "think", 4)
    assert found["not_compared"] == {
        "old": "only base has it",
        "new": "only think has it",
        "rare": "no request has it in both",
    }


def test_the_interval_of_two_requests() -> None:
    # Differences 0 and 1: resampled means are 0, 0.5 and 1, both tails above 2.5%.
    few = length_benchmark(100, 200)
    before, after = (evaluation_of(n, few, {}, x=v) for n, v in (("a", [0.0, 0.0]), ("b", [0.0, 1.0])))
    assert compare(before, after, 4000, 1)["scores"]["x"]["difference"] == {"mean": 0.5, "low": 0.0, "high": 1.0}


def test_verdicts_of_two_judges_are_not_compared() -> None:
    found = compare(evaluation("a", s_q=[1, 2, 3, 4]), evaluation("b", "judge/2", s_q=[1, 2, 3, 4]), 10, 0)
    assert found["scores"] == {}
    assert found["not_compared"] == {"s_q": "judged differently: judge/1 and judge/2"}


def test_only_shared_requests_of_the_same_benchmark_are_compared() -> None:
    full = evaluation("full", s_l=[10, 20, 30, 40])
    two = evaluation_of("two", length_benchmark(100, 200), {}, s_l=[20.0, 40.0])
    assert compare(full, two, 50, 0)["scores"]["s_l"]["difference"]["mean"] == 15.0
    assert compare(full, two, 50, 0)["num_shared"] == 2
    changed = evaluation_of("new", length_benchmark(100, 201), {}, s_l=[1.0, 1.0])
    with pytest.raises(
        UserError, match=r"full and new were asked different things as request 1 of .* \(1 of 2 differ\)"
    ):
        compare(full, changed, 10, 0)
    with pytest.raises(UserError, match="full was evaluated on longbench_write, other on arena_write"):
        compare(full, replace(full, name="other", benchmark="arena_write"), 10, 0)
    with pytest.raises(UserError, match="full and other share no request"):
        compare(full, replace(full, name="other", requests={"9": "x"}), 10, 0)


def test_side_by_side() -> None:
    one = evaluation("one", s_l=[10, 20, 30, 40], s_q=[50, 50, 50, 50], plans=[NAN] * 4)
    two = evaluation("two", s_l=[20, 30, 40, 50])
    found = side_by_side([one, two, replace(two, name="three")], resamples=200, seed=1)
    assert found["names"] == ["one", "two", "three"]
    assert list(found["scores"]) == ["s_l", "s_q"]  # nobody has a plan
    assert [entry["mean"] for entry in found["scores"]["s_l"]] == [25.0, 35.0, 35.0]
    assert found["scores"]["s_l"][0]["low"] < 25.0 < found["scores"]["s_l"][0]["high"]
    assert found["scores"]["s_q"] == [{"mean": 50.0, "low": 50.0, "high": 50.0, "num_requests": 4}, None, None]
    assert [a["after"] for a in found["against_first"]] == ["two", "three"]
    assert found["against_first"][0]["scores"]["s_l"]["difference"] == {"mean": 10.0, "low": 10.0, "high": 10.0}
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(UserError, match="1 evaluation to put side by side"):
        side_by_side([one], 10, 0)
    with pytest.raises(UserError, match="two evaluations are called 'one'"):
        side_by_side([one, replace(two, name="one")], 10, 0)


def test_an_evaluation_survives_its_file() -> None:
    before = evaluation("base", s_l=[10, NAN, 30, 40], s_q=[1, 2, 3, 4])
    again = Evaluation.from_dict(json.loads(json.dumps(before.as_dict())), "e.json")
    assert again.per_request["s_l"][0] == 10
    assert np.isnan(again.per_request["s_l"][1])
    assert (again.name, again.benchmark, again.judged) == ("base", "longbench_write", {"s_q": "judge/1"})
    assert again.requests == before.requests
    with pytest.raises(UserError, match=r"e.json: no evaluation \(KeyError: 'per_request'\)"):
        Evaluation.from_dict({}, "e.json")
    with pytest.raises(UserError, match=r"e.json: s_l has other than 4 numbers"):
        Evaluation.from_dict(before.as_dict() | {"per_request": {"s_l": [1.0]}}, "e.json")
