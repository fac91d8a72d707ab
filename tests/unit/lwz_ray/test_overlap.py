"""Benchmark requests in other texts: shares by hand, short requests, files of three benchmarks and bad ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from lwz_ray.dedup import folded
from lwz_ray.errors import UserError
from lwz_ray.overlap import Hit, Overlap, read_benchmarks

REQUEST = "one two three four five six seven eight nine ten eleven"  # 8 different 4-grams


def test_the_share_is_of_the_benchmarks_request():
    overlap = Overlap({"bench": ["something else that is long enough", REQUEST]}, ngram=4, share=0.5)
    text = f"Please {REQUEST.upper()}, and then a thousand other words"
    assert overlap.find(folded(text)) == [Hit("bench", 1, 1.0)]
    # Words one to seven are 4 of its 8 n-grams; one to six are 3 of 8.
    assert overlap.find(folded("one two three four five six seven and so on")) == [Hit("bench", 1, 0.5)]
    assert overlap.find(folded("one two three four five six and so on")) == []


def test_a_request_shorter_than_an_ngram_overlaps_with_its_own_words_only():
    overlap = Overlap({"a": ["Write a story."], "b": ["write A story"]}, ngram=8, share=0.1)
    assert overlap.find(folded("WRITE a story!")) == [Hit("a", 0, 1.0), Hit("b", 0, 1.0)]
    assert overlap.find(folded("Write a story about a fox")) == []


def test_chinese_counts_characters():
    overlap = Overlap({"zh": ["请写一篇关于江南水乡的散文"]}, ngram=8, share=0.5)  # 13 characters: 6 n-grams
    (hit,) = overlap.find(folded("请你写一篇关于江南水乡的散文"))  # 写…文: 12 characters, 5 of them
    assert hit == Hit("zh", 0, 5 / 6)


def test_repeated_ngrams_count_once():
    overlap = Overlap(
        {"a": ["tick tock tick tock tick tock now"]}, ngram=2, share=0.6
    )  # tick tock, tock tick, tock now
    assert overlap.find(folded("tick tock tick tock tick tock")) == [Hit("a", 0, 2 / 3)]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def test_reads_the_requests_of_three_benchmarks(tmp_path: Path):
    files = {
        "longbench_write": write(tmp_path / "l.jsonl", {"prompt": "P", "type": "t", "length": 100}),
        "writingbench": write(
            tmp_path / "w.jsonl", {"index": 1, "query": "Q", "checklist": []}, {"index": 2, "query": "R"}
        ),
        "arena_write": write(tmp_path / "a.jsonl", {"idx": 1, "question": "A", "baseline_response": "B"}),
    }
    assert read_benchmarks(files) == {"longbench_write": ["P"], "writingbench": ["Q", "R"], "arena_write": ["A"]}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "P"}, {"text": "T"}], "line 2: no request in a column query, question, prompt, there are text"),
        ([{"prompt": "P"}, "{"], "line 2: not JSON"),
        ([{"prompt": 3}], "line 1: no request"),
        ([], "holds no request"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_refused(tmp_path: Path, rows: list[Any], said: str):
    with pytest.raises(UserError, match=f"curate.chat_logs.benchmarks.mine: .*{said}"):
        read_benchmarks({"mine": write(tmp_path / "b.jsonl", *rows)})


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"curate\.chat_logs\.benchmarks\.mine: .*no such file"):
        read_benchmarks({"mine": str(tmp_path / "none.jsonl")})
