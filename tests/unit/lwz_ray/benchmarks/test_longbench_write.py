"""S_L and S_Q with the published formulas' numbers, and the two word counters."""

import pytest

from lwz_ray.benchmarks.longbench_write import (
    DIMENSIONS,
    length_bucket,
    length_score,
    out_of_reach,
    published_words,
    quality_score,
    score_both,
    score_length,
    score_quality,
)
from lwz_ray.benchmarks.records import Benchmark, BenchmarkRequest, QualityVerdict
from lwz_ray.text import count_words
from tests.benchmark_parts import arena, length_benchmark, words, written


@pytest.mark.parametrize(
    ("required", "written_words", "score"),
    [
        (1000, 1000, 100.0),
        (1000, 1300, 90.0),  # 1 - 0.3 / 3
        (1000, 2500, 50.0),  # 1 - 1.5 / 3
        (1000, 4000, 0.0),
        (1000, 9000, 0.0),
        (1000, 800, 87.5),  # 1 - 0.25 / 2
        (1000, 500, 50.0),  # 1 - 1 / 2
        (900, 300, 0.0),  # 1 - 2 / 2
        (1000, 10, 0.0),
        (1000, 0, 0.0),  # the formula would divide by zero
    ],
)
def test_length_score(required: int, written_words: int, score: float) -> None:
    assert length_score(required, written_words) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(("required", "written_words"), [(0, 10), (10, -1)])
def test_length_score_refuses_what_is_no_length(required: int, written_words: int) -> None:
    with pytest.raises(ValueError, match=f"{required} words required, {written_words} written"):
        length_score(required, written_words)


def six(*scores: int) -> dict[str, int]:
    return dict(zip(DIMENSIONS, scores, strict=True))


def test_quality_score() -> None:
    assert quality_score(six(5, 5, 5, 5, 5, 5)) == 100.0
    assert quality_score(six(1, 1, 1, 1, 1, 1)) == 0.0
    assert quality_score(six(3, 4, 4, 5, 2, 3)) == 62.5  # 50, 75, 75, 100, 25, 50
    with pytest.raises(ValueError, match=r"needs exactly .*; got relevance"):
        quality_score({"relevance": 3})
    with pytest.raises(ValueError, match=r"outside of 1 to 5: \{'clarity': 6\}"):
        quality_score(six(3, 3, 3, 6, 3, 3))


@pytest.mark.parametrize(
    ("text", "published", "ours"),
    [
        ("The quick brown fox", 4, 4),
        ("春眠不觉晓", 5, 5),
        ("It's 3.14, don't", 4, 3),  # It, s, don, t; ours: It's, 3.14, don't
        ("GPT模型", 2, 3),  # the Latin run touches a letter
        ("GPT-4 模型", 3, 4),
        ("café", 0, 1),
        ("cafe\u0301", 1, 1),  # a combining accent is no letter there
        ("snake_case", 0, 2),
        ("ひらがな", 0, 4),
        ("", 0, 0),
    ],
)
def test_published_words(text: str, published: int, ours: int) -> None:
    assert published_words(text) == published
    assert count_words(text) == ours


def test_length_bucket() -> None:
    assert [length_bucket(n) for n in (100, 499, 500, 1999, 2000, 3999, 4000, 20000)] == [
        "below 500",
        "below 500",
        "500 to 1,999",
        "500 to 1,999",
        "2,000 to 3,999",
        "2,000 to 3,999",
        "4,000 and more",
        "4,000 and more",
    ]


def test_scores_of_texts() -> None:
    benchmark = Benchmark(
        "longbench_write",
        (
            BenchmarkRequest("a", "Write.", "en", 100, {"type": "essay"}),
            BenchmarkRequest("b", "写。", "zh", 4, {"type": "story"}),
            BenchmarkRequest("c", "Write a lot.", "en", 20000, {"type": "essay"}),
        ),
        3,
    )
    texts = [
        written("a", words(50)),  # 50
        written("a", words(130), sample_index=1),  # 90
        written("b", "一二三4"),  # ours 4 words: 100; published 3: 1 - (4 / 3 - 1) / 2 = 83.33
        written("c", words(200)),  # 0
    ]
    found = score_length(benchmark, texts, resamples=200, seed=1)
    assert found.per_request["s_l"].tolist() == pytest.approx([70.0, 100.0, 0.0])
    assert found.per_request["s_l_published"].tolist() == pytest.approx([70.0, 83.3333333, 0.0])
    assert found.overall["counters_differ"] == 1
    s_l = found.overall["s_l"]
    assert s_l["all"]["mean"] == pytest.approx(56.6666667)
    assert s_l["all"]["low"] < 56.67 < s_l["all"]["high"]
    assert (s_l["all"]["num_requests"], s_l["all"]["num_values"]) == (3, 3)
    assert {k: v["mean"] for k, v in s_l["length"].items()} == pytest.approx({"below 500": 85.0, "4,000 and more": 0})
    assert {k: v["mean"] for k, v in s_l["language"].items()} == pytest.approx({"en": 35.0, "zh": 100.0})
    assert {k: v["mean"] for k, v in s_l["type"].items()} == pytest.approx({"essay": 35.0, "story": 100.0})

    judged = [QualityVerdict("a", 0, six(5, 5, 5, 5, 5, 5)), QualityVerdict("c", 0, six(1, 3, 3, 3, 3, 3))]
    quality = score_quality(benchmark, judged, resamples=200, seed=1)
    assert quality.overall["s_q"]["all"]["mean"] == pytest.approx((100 + 250 / 6) / 2)
    assert quality.overall["dimension"]["relevance"]["mean"] == 50.0
    assert quality.overall["dimension"]["clarity"]["mean"] == 75.0
    assert quality.overall["num_judged"] == 2
    assert quality.overall["s_q"]["all"]["num_requests"] == 2  # b has no verdict: it is in no mean
    both = score_both(benchmark, found, quality, resamples=200, seed=1)
    assert both.overall["s"]["all"]["mean"] == pytest.approx(((70 + 100) / 2 + (0 + 250 / 6) / 2) / 2)


def test_requests_out_of_reach_are_counted() -> None:
    texts = [written("0", words(100)), written("1", words(100), finish_reason="length")]  # two tokens a word
    found = out_of_reach(length_benchmark(100, 128, 129, 20000), texts, max_tokens=256)
    assert found == {"num_requests": 2, "max_words": {"en": 128}, "num_cut": 1}
    # A plan that never ended holds no word of the work: it says nothing about how many words a token makes.
    endless = [*texts, written("2", "", completion=words(100), num_tokens=200, finish_reason="length")]
    found = out_of_reach(length_benchmark(100, 128, 129, 20000), endless, max_tokens=256)
    assert found == {"num_requests": 2, "max_words": {"en": 128}, "num_cut": 2}
    silent = out_of_reach(length_benchmark(100), [written("0", "")], max_tokens=256)
    assert silent == {"num_requests": 0, "max_words": {}, "num_cut": 0}


def test_a_request_without_a_length_has_no_s_l() -> None:
    with pytest.raises(ValueError, match="request q of arena_write has no required length"):
        score_length(arena("q"), [written("q", "text")], 10, 0)
