"""Rows of chat logs sifted: one reason for each, in order, with counts that add up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch.compose import compose
from lwz_ray.chat_logs_sieve import REASONS, Candidate, LeftOut, LogSieve
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.overlap import Overlap

NOTHING = Overlap({}, 8, 0.5)


def row(text: Any, key: str = "k", language: str = "English", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Well."}]
    return {"conversation_hash": key, "conversation": turns, "language": language, "toxic": False} | more


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    def make(sources: dict[str, list[Any]], *words: str) -> Config:
        paths = []
        for name, rows in sources.items():
            path = tmp_path / name
            if path.suffix == ".parquet":
                pq.write_table(pa.Table.from_pylist(rows), path)
            else:
                lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
                path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            paths.append(str(path))
        return compose(["run=curate_logs", f"curate.chat_logs.paths=[{','.join(paths)}]", *words])

    return make


def sift(config: Config, overlap: Overlap = NOTHING) -> tuple[LogSieve, list[Candidate | LeftOut]]:
    sieve = LogSieve(config, overlap)
    return sieve, list(sieve.rows())


def test_each_row_goes_where_its_first_reason_sends_it(config: Callable[..., Config]):
    benchmark = "Tell the history of the town clock and of the three men who wound it"
    rows = [
        row("Write a long report about the flood of last spring and what it cost the mill", "a"),
        "not json",
        row("", "b"),
        row("Write about my neighbour", "c", toxic=True),
        row("Write about my address", "d", redacted=True),
        row("Напиши сказку", "e", "Russian"),
        row("word " * 60, "f"),
        row("WRITE a long report about the flood of last spring, and what it cost the mill!", "g"),
        row(f"Please: {benchmark}", "h"),
        row("Write a long report about the flood of last winter and what it cost the mill", "i"),
        row("请写一篇散文，写江南的雨", "j", "Chinese"),
    ]
    made = config({"log.jsonl": rows}, "data.on_bad_row=skip", "curate.chat_logs.max_request_words=50")
    sieve, found = sift(made, Overlap({"bench": [benchmark]}, 8, 0.5))
    reasons = [None if isinstance(f, Candidate) else f.reason for f in found]
    assert reasons == [
        None, "bad_rows", "no_request", "flagged", "flagged", "other_language", "too_long", "duplicate", "overlap",
        "near_duplicate", None,
    ]  # fmt: skip
    (counts,) = sieve.counts.values()
    assert counts["read"] == 11 == counts["candidates"] + sum(counts[r] for r in REASONS)
    assert (counts["toxic"], counts["redacted"], counts["without_flags"]) == (1, 1, 0)
    assert [f.id for f in found if isinstance(f, Candidate)] == ["wildchat-a", "wildchat-j"]
    assert [f.language for f in found if isinstance(f, Candidate)] == ["en", "zh"]
    near, overlapping = found[9], found[8]
    assert isinstance(near, LeftOut) and near.about == "wildchat-a"
    assert isinstance(overlapping, LeftOut) and overlapping.about == "bench 0"
    assert [(hit.benchmark, hit.index, hit.share, place) for hit, _, place in sieve.hits] == [
        ("bench", 0, 1.0, "line 9")
    ]


def test_two_formats_with_a_language_each_and_ids_that_stay_apart(config: Callable[..., Config]):
    wildchat = [row("Write a poem about rain", "x"), row("写一首关于雨的诗", "y", "Chinese")]
    lmsys = [
        {
            "conversation_id": "x",
            "conversation": [{"role": "user", "content": text}],
            "language": language,
            "openai_moderation": [{"flagged": False}],
            "redacted": False,
        }
        for text, language in (("Write a poem about snow", "English"), ("写一首关于雪的长诗", "Chinese"),
                               ("写一篇关于风的文章", "Chinese"))
    ]  # fmt: skip
    words = ["curate.chat_logs.languages={wildchat: [en], lmsys: [zh]}"]
    made = config({"w.jsonl": wildchat, "l.parquet": lmsys}, *words)
    sieve, found = sift(made)
    kept = [f for f in found if isinstance(f, Candidate)]
    assert [(k.id, k.prompt) for k in kept] == [
        ("wildchat-x", "Write a poem about rain"),
        ("lmsys-x", "写一首关于雪的长诗"),
        ("lmsys-x-2", "写一篇关于风的文章"),
    ]
    assert list(sieve.formats.values()) == ["wildchat", "lmsys"]


def test_a_duplicate_in_a_later_file_is_left_out_and_max_rows_is_of_each_file(config: Callable[..., Config]):
    first = [row("Write a poem about rain", "a"), row("Write a poem about the sea", "b")]
    second = [row("write a poem about RAIN", "c"), row("Write a poem about stones", "d"), row("Write of bread", "e")]
    sieve, found = sift(config({"1.jsonl": first, "2.jsonl": second}, "curate.chat_logs.max_rows=2"))
    assert [f.reason if isinstance(f, LeftOut) else f.id for f in found] == [
        "wildchat-a", "wildchat-b", "duplicate", "wildchat-d",
    ]  # fmt: skip
    assert [c["read"] for c in sieve.counts.values()] == [2, 2]


def test_flagged_rows_may_be_kept_and_rows_without_flags_are_counted(config: Callable[..., Config]):
    rows = [row("Write about knives", "a", toxic=True), row("Write about spoons", "b")]
    del rows[1]["toxic"]
    sieve, found = sift(config({"1.jsonl": rows}, "curate.chat_logs.drop_flagged=false"))
    (counts,) = sieve.counts.values()
    assert (len(found), counts["candidates"], counts["toxic"], counts["without_flags"]) == (2, 2, 1, 1)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "line 2: not JSON"),
        (row(7), "line 2: content=7"),
        ({"text": "t"}, "line 2: no column 'conversation'"),
        (json.dumps(row("cut \ud83d")), "line 2: content of the first user turn: half of a character at 5"),
    ],
)
def test_a_bad_row_is_named(config: Callable[..., Config], bad: Any, said: str):
    with pytest.raises(UserError, match=rf"log\.jsonl, {said}.*data\.on_bad_row=skip"):
        sift(config({"log.jsonl": [row("Write."), bad]}))


def test_a_file_that_is_no_chat_log_is_named(config: Callable[..., Config]):
    with pytest.raises(UserError, match=r"log\.jsonl has the columns prompt; .*curate\.chat_logs\.format"):
        sift(config({"log.jsonl": [{"prompt": "p"}]}))
