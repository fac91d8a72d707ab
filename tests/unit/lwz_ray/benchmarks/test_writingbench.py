"""WritingBench's four published scores with numbers worked out by hand."""

import pytest

from lwz_ray.benchmarks.records import Benchmark, BenchmarkRequest, CriterionVerdict
from lwz_ray.benchmarks.writingbench import score
from tests.benchmark_parts import criterion


def request(key: str, domain: str, *names: str, **requirements: tuple[str, ...]) -> BenchmarkRequest:
    labels = {"domain1": domain, "domain2": f"{domain} of {key}"}
    return BenchmarkRequest(key, key, "en", None, labels, tuple(criterion(n) for n in names), requirements)


BENCHMARK = Benchmark(
    "writingbench",
    (
        request("1", "Law", "tone", "depth", style=("tone",)),
        request("2", "Law", "tone", "form", "facts", style=("tone",), format=("form",)),
        request("3", "Art", "colour", format=()),
        request("4", "Art", "sound"),
    ),
    4,
)


def verdicts(*rows: tuple[str, int, str, int]) -> list[CriterionVerdict]:
    return [CriterionVerdict(*row) for row in rows]


def test_published_scores() -> None:
    found = score(
        BENCHMARK,
        verdicts(
            ("1", 0, "tone", 8),
            ("1", 0, "depth", 6),  # m(1) = 7
            ("2", 0, "tone", 2),
            ("2", 0, "form", 10),
            ("2", 0, "facts", 9),  # m(2) = 7
            ("3", 0, "colour", 4),  # m(3) = 4
        ),
        resamples=300,
        seed=2,
    )
    overall = found.overall
    assert overall["overall"]["mean"] == pytest.approx(39 / 6)  # of criteria, not of requests: that would be 6
    assert overall["overall"]["num_values"] == 6
    assert {k: v["mean"] for k, v in overall["domain1"].items()} == {"Art": 4.0, "Law": 7.0}
    assert overall["domain2"]["Law of 2"]["mean"] == 7.0
    assert {k: v["mean"] for k, v in overall["requirement"].items()} == {"style": 7.0, "format": 5.5}
    assert {k: v["mean"] for k, v in overall["requirement_c"].items()} == {"style": 5.0, "format": 10.0}
    assert list(overall["requirement"]) == ["style", "format"]
    assert overall["num_requests"] == 3
    assert overall["num_missing"] == 0
    means = found.per_request["writingbench"].tolist()
    assert means[:3] == [7.0, 7.0, 4.0]
    assert means[3] != means[3]  # nobody judged request 4: not a number, not 0


def test_samples_count_as_one_and_missing_verdicts_are_counted() -> None:
    found = score(
        BENCHMARK, verdicts(("1", 0, "tone", 2), ("1", 1, "tone", 4), ("4", 0, "sound", 9)), resamples=100, seed=2
    )
    assert found.overall["overall"]["mean"] == 6.0  # of 3 and 9
    assert found.overall["num_missing"] == 1  # depth of request 1
    assert score(BENCHMARK, [], 100, 0).overall["overall"] is None


@pytest.mark.parametrize(
    ("row", "message"),
    [(("1", 0, "form", 5), "request 1 has no criterion 'form'"), (("1", 0, "tone", 11), "11 of 1 to 10")],
)
def test_refusals(row: tuple[str, int, str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(BENCHMARK, verdicts(row), 10, 0)
