"""Judging a benchmark's texts: a real HTTP server on loopback as the judge, and a file that keeps what it said."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from launch.chat_store import CachedChat
from lwz_ray.benchmarks.judging import Judged, JudgeEstimate, JudgeSettings, estimate, judge_tasks, judge_texts
from lwz_ray.benchmarks.longbench_write import DIMENSIONS
from lwz_ray.benchmarks.records import Benchmark, BenchmarkRequest, CriterionVerdict, Game, QualityVerdict
from lwz_ray.errors import UserError
from rewards.chat_endpoint import EndpointChat
from tests.benchmark_parts import arena, criterion, length_benchmark, written
from tests.unit.rewards.judge_parts import DOWN, MALFORMED, judge_config
from tests.unit.rewards.judge_server import (
    GOOD,
    JudgeServer,
    Reply,
    always_first,
    by_good_words,
    serve,
    texts_of,
)

SETTINGS = JudgeSettings(temperature=0.0, top_p=1.0, max_tokens=64, seed=3, at_once=4)
LENGTHS = length_benchmark(100, 200)
TEXTS = [written("0", "good tea", "Write text 0."), written("1", "bad tea", "Write text 1.")]
CRITERIA = Benchmark(
    "writingbench",
    (
        BenchmarkRequest("7", "Write.", "en", None, {"domain1": "a", "domain2": "b"}, (criterion("plot"),)),
        BenchmarkRequest(
            "8", "Write.", "en", None, {"domain1": "a", "domain2": "b"}, (criterion("plot"), criterion("style"))
        ),
    ),
    2,
)


def six_scores(texts: dict[str, str]) -> dict[str, Any]:
    """Score 5 where the answer is good, else 2; reading experience 1."""
    score = 5 if "good" in texts["ANSWER"] else 2
    return {"reason": "read", **dict.fromkeys(DIMENSIONS, score), "reading_experience": 1}


@asynccontextmanager
async def judge_of(server: JudgeServer, path: Path, **changes: Any) -> AsyncIterator[CachedChat]:
    async with serve(server):
        config = judge_config(server.base_url, **{"max_retries": 0, **changes})
        chat = CachedChat(EndpointChat(config, seed=1), path)
        try:
            yield chat
        finally:
            await chat.close()


async def judged(server: JudgeServer, path: Path, benchmark: Benchmark, texts: Sequence[Any]) -> Judged:
    async with judge_of(server, path) as chat:
        return await judge_texts(benchmark, texts, "ours", chat, SETTINGS)


async def test_six_scores_a_text(tmp_path: Path) -> None:
    found = await judged(JudgeServer(judging=six_scores), tmp_path / "j.jsonl", LENGTHS, TEXTS)
    high, low = (dict.fromkeys(DIMENSIONS, score) | {"reading_experience": 1} for score in (5, 2))
    assert found.verdicts == [QualityVerdict("0", 0, high), QualityVerdict("1", 0, low)]
    assert found.summary() == {"questions": 2, "verdicts": 2, "redrawn": 0, "failed": {}, "examples": []}


async def test_one_call_a_criterion(tmp_path: Path) -> None:
    server = JudgeServer(judging=by_good_words)
    texts = [written("7", "good", "Write."), written("8", "good good", "Write.")]
    found = await judged(server, tmp_path / "j.jsonl", CRITERIA, texts)
    assert found.verdicts == [
        CriterionVerdict("7", 0, "plot", 4),
        CriterionVerdict("8", 0, "plot", 7),
        CriterionVerdict("8", 0, "style", 7),
    ]
    asked = sorted(body["messages"][0]["content"].count("How good is the style?") for body in server.bodies)
    assert asked == [0, 0, 1]


@pytest.mark.parametrize(
    ("judging", "scores"),
    [(by_good_words, [1.0, 1.0, 0.5, 0.5]), (always_first, [1.0, 0.0, 1.0, 0.0])],
    ids=["by_words", "always_first"],
)
async def test_pairs_in_both_orders(tmp_path: Path, judging: Callable[..., Any], scores: list[float]) -> None:
    benchmark = arena("a", "b", baselines=["north"])
    texts = [written("a", "good", "Question a?"), written("b", "tea", "Question b?")]
    server = JudgeServer(judging=judging)
    found = await judged(server, tmp_path / "j.jsonl", benchmark, texts)
    assert found.verdicts == [
        Game("a", 0, "ours", "north", True, scores[0]),
        Game("a", 0, "ours", "north", False, scores[1]),
        Game("b", 0, "ours", "north", True, scores[2]),
        Game("b", 0, "ours", "north", False, scores[3]),
    ]
    shown = {(texts_of(body)["FIRST ANSWER"], texts_of(body)["SECOND ANSWER"]) for body in server.bodies}
    assert shown == {
        ("good", "north says a"),
        ("north says a", "good"),
        ("tea", "north says b"),
        ("north says b", "tea"),
    }
    # Nobody tells the judge whose text is whose.
    assert not any("ours" in json.dumps(body) for body in server.bodies)


async def test_a_rerun_asks_nothing_twice_and_one_that_was_cut_short_asks_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    first = await judged(JudgeServer(judging=six_scores), path, LENGTHS, TEXTS[:1])
    server = JudgeServer(judging=six_scores)
    second = await judged(server, path, LENGTHS, TEXTS)
    assert len(server.bodies) == 1
    assert second.verdicts[:1] == first.verdicts
    server = JudgeServer(judging=six_scores)
    assert (await judged(server, path, LENGTHS, TEXTS)).verdicts == second.verdicts
    assert server.bodies == []
    about = [json.loads(line)["about"] for line in path.read_text().splitlines()]
    assert [name.partition("/")[0] for name in about] == ["quality", "quality"]


async def test_a_reply_that_cannot_be_read_is_drawn_again(tmp_path: Path) -> None:
    cut = Reply(content=json.dumps(six_scores({"ANSWER": "good"})), finish_reason="length")
    server = JudgeServer([MALFORMED, cut, GOOD], judging=six_scores)
    found = await judged(server, tmp_path / "j.jsonl", LENGTHS, TEXTS[:1])
    assert [verdict.scores["clarity"] for verdict in found.verdicts if isinstance(verdict, QualityVerdict)] == [5]
    assert (found.num_redrawn, found.failed) == (2, {})
    # At temperature 0 the same reply would come again.
    assert [(body["seed"], body["temperature"]) for body in server.bodies] == [(3, 0.0), (4, 0.5), (5, 0.5)]


async def test_what_stays_unreadable_or_unanswered_is_counted_and_never_scored(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    found = await judged(JudgeServer([MALFORMED]), path, LENGTHS, TEXTS)
    assert found.verdicts == []
    summary = found.summary()
    assert {k: summary[k] for k in ("questions", "verdicts", "redrawn", "failed")} == {
        "questions": 2,
        "verdicts": 0,
        "redrawn": 4,
        "failed": {"unreadable": 2},
    }
    assert sorted(summary["examples"])[0].startswith("request 0, sample 0: unreadable: Invalid JSON")
    assert "I would give it a 7." in summary["examples"][0]
    # The rest is judged where one text is refused; 6 replies in the file are not asked for again.
    refused = await judged(
        JudgeServer([Reply(status=400), GOOD], judging=six_scores), tmp_path / "k.jsonl", LENGTHS, TEXTS
    )
    assert (len(refused.verdicts), refused.failed) == (1, {"rejected": 1})
    server = JudgeServer([MALFORMED])
    assert (await judged(server, path, LENGTHS, TEXTS)).failed == {"unreadable": 2}
    assert server.bodies == []


async def test_a_judge_that_is_gone_ends_it_and_what_it_said_stays(tmp_path: Path) -> None:
    benchmark = length_benchmark(*[100] * 20)
    texts = [written(str(i), f"good {i}", f"Write text {i}.") for i in range(20)]
    path = tmp_path / "j.jsonl"
    told: list[int] = []
    seen: list[Judged] = []

    def tell(judged: Judged) -> None:
        seen.append(judged)
        told.append(judged.num_done)

    async with judge_of(JudgeServer([GOOD, GOOD, DOWN], judging=six_scores), path) as chat:
        with pytest.raises(UserError, match="8 requests in a row were left without a reply"):
            await judge_texts(benchmark, texts, "ours", chat, SETTINGS, tell)
    assert told[:2] == [1, 2]
    assert seen[-1].summary()["verdicts"] == 2  # the account of a run that was cut short counts them too
    assert len(path.read_text().splitlines()) == 2
    server = JudgeServer(judging=six_scores)
    found = await judged(server, path, benchmark, texts)
    assert (len(found.verdicts), len(server.bodies)) == (20, 18)


@pytest.mark.parametrize(
    ("benchmark", "questions", "answers"),
    # Two samples a request; pairs are asked twice and hold the baseline's 12 characters too.
    [(LENGTHS, 4, 4), (CRITERIA, 6, 6), (arena("a", "b", baselines=["north"]), 8, 8)],
    ids=["longbench_write", "writingbench", "arena_write"],
)
def test_the_estimate_counts_every_question(benchmark: Benchmark, questions: int, answers: int) -> None:
    found = estimate(benchmark, 2, lambda request_id: 1000, 50, len)
    empty = [written(r.request_id, "", r.text, sample) for r in benchmark.requests for sample in range(2)]
    frames = sum(
        len(message["content"]) for task in judge_tasks(benchmark, empty, "x") for message in task.question.messages()
    )
    assert found == JudgeEstimate(questions, frames + 1000 * answers, questions * 50)
