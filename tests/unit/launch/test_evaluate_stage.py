"""`stage=evaluate` whole: texts that are there, a judge over HTTP, and what is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from lwz_ray.benchmarks.longbench_write import DIMENSIONS
from tests.benchmark_parts import criterion_row, write_lines
from tests.metric_docs import undocumented
from tests.unit.launch.evaluate_parts import (
    ANSWERS,
    REQUESTS,
    ProbedServer,
    front_door,
    judged_by,
    read,
    requests_file,
    serving,
    texts_file,
    words_of,
)
from tests.unit.rewards.judge_server import GOOD, Reply, always_first, by_good_words

PROMPTS = [row["prompt"] for row in REQUESTS]


def six_scores(texts: dict[str, str]) -> dict[str, Any]:
    """Score a good answer 5 and any other 2, reading experience 1; say nothing that can be read about rain."""
    if "rain" in texts["ANSWER"]:
        return {"reason": "no scores"}
    score = 5 if "good" in texts["ANSWER"] else 2
    return {"reason": "read", **dict.fromkeys(DIMENSIONS, score), "reading_experience": 1}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    requests_file(tmp_path)
    texts_file(tmp_path, PROMPTS, ANSWERS)
    return tmp_path


def test_without_a_judge_the_rest_is_measured(files: Path, capsys: pytest.CaptureFixture[str]):
    assert front_door(words_of(files, "plain")) == 0
    summary, evaluation = read(files, "plain", "summary.json"), read(files, "plain", "evaluation.json")
    # Of 4 words asked for: 4 written are worth 100, 1 is worth 0, 6 are worth
    # 100 * (1 - (6 / 4 - 1) / 3); the authors count 4 of these 6.
    assert evaluation["per_request"]["s_l"] == pytest.approx([100.0, 0.0, 83.3333333])
    assert evaluation["per_request"]["s_l_published"] == pytest.approx([100.0, 0.0, 100.0])
    found = summary["evaluate"]
    assert found["scores"]["s_l"]["mean"] == pytest.approx(61.1111111)
    assert found["scores"]["counters_differ"] == 1
    reason = {"not_measured": "no judge: judge.base_url and evaluate.judge_path are null"}
    assert (found["scores"]["s_q"], found["scores"]["s"], found["judge"]) == (reason, reason, reason)
    assert found["measures"]["length_error"]["mean"] == pytest.approx((0 + 0.75 + 0.5) / 3)
    assert evaluation["overall"]["scores"]["s_l"]["type"]["letter"]["mean"] == pytest.approx(83.3333333)
    assert (evaluation["required_words"], evaluation["judged"]) == ([4, 4, 4], {})
    said = capsys.readouterr().out
    assert "S_L, length: 61.11" in said
    assert "S_Q, quality: not measured (no judge" in said
    page = (files / "runs/plain/report.html").read_text()
    assert "Words written and asked for" in page
    assert "Judged scores are not measured: no judge" in page
    assert "Only 3 of the benchmark&#39;s 120 requests: no score of the benchmark." in page
    assert "Texts that were there" in page
    for words in ("Prompt arm", "Judge&#39;s temperature", "Steps", "Tokens trained", "Policy version", "asynchronous"):
        assert words not in page
    lines = [json.loads(line) for line in (files / "runs/plain/metrics.jsonl").read_text().splitlines()]
    assert [undocumented(line) for line in lines] == [set()]
    assert lines[0]["evaluate/s_l"] == pytest.approx(61.1111111)
    assert len((files / "runs/plain/texts.jsonl").read_text().splitlines()) == 3


def test_an_attempt_that_ends_early_shows_nothing_of_the_one_before(files: Path):
    assert front_door(words_of(files, "twice")) == 0
    with serving(ProbedServer()) as server:
        gone = judged_by(server)
    assert front_door(words_of(files, "twice", *gone, "run.resume=auto")) == 2
    assert not (files / "runs/twice/evaluation.json").exists()
    assert read(files, "twice", "evaluation.attempt-1.json")["overall"]["scores"]["s_l"]["all"]["mean"] > 61
    assert "61.11" not in (files / "runs/twice/report.html").read_text()
    assert front_door(words_of(files, "twice", "run.resume=auto")) == 0
    assert "61.11" in (files / "runs/twice/report.html").read_text()


def test_a_judge_is_asked_once_and_what_it_says_unclearly_is_in_no_score(files: Path):
    with serving(ProbedServer(judging=six_scores)) as server:
        words = words_of(files, "judged", *judged_by(server))
        assert front_door(words) == 0
        first = read(files, "judged", "evaluation.json")
        # Two texts have a verdict at once, the third none in three draws.
        assert len(server.bodies) == 5
        assert front_door([*words, "run.resume=auto"]) == 0
        assert len(server.bodies) == 5
    again = read(files, "judged", "evaluation.json")
    assert again["per_request"] == first["per_request"]
    # (5 - 1) * 25 on five dimensions and 0 on the sixth.
    assert first["per_request"]["s_q"] == pytest.approx([83.3333333, None, 83.3333333])
    assert first["per_request"]["s"] == pytest.approx([91.6666667, None, 83.3333333])
    assert set(first["judged"]) == {"s_q", "s", *(f"s_q_{name}" for name in DIMENSIONS)}
    (identity,) = set(first["judged"].values())
    assert identity.startswith("judge, temperature 0.5, top-p 1, at most 512 tokens, questions ")
    judge = read(files, "judged", "summary.json")["evaluate"]["judge"]
    assert (judge["questions"], judge["verdicts"], judge["failed"]) == (3, 2, {"unreadable": 1})
    assert (judge["usage"]["calls"], judge["usage"]["cached"]) == (0, 5)
    page = (files / "runs/judged/report.html").read_text()
    assert "Questions to the judge without a verdict, in no mean: 1 unreadable." in page
    lines = [json.loads(line) for line in (files / "runs/judged/metrics.jsonl").read_text().splitlines()]
    assert [undocumented(line) for line in lines] == [set()] * len(lines)
    assert [line["evaluate/failed"] for line in lines if "evaluate/failed" in line and "superseded" not in line] == [1]


def test_a_judge_that_goes_away_takes_nothing_with_it(files: Path, capsys: pytest.CaptureFixture[str]):
    down = Reply(status=500)
    more = ["judge.max_concurrency=1"]
    rows = [{"prompt": f"Write {i}.", "type": "essay", "length": 4} for i in range(12)]
    requests_file(files, rows)
    texts_file(files, [row["prompt"] for row in rows], ["a good small text"] * 12)
    with serving(ProbedServer([GOOD, GOOD, down], six_scores)) as server:
        assert front_door(words_of(files, "lost", *judged_by(server), *more)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "8 requests in a row were left without a reply" in said[0]
    summary = read(files, "lost", "summary.json")
    assert (summary["status"], summary["error"].startswith("8 requests in a row")) == ("failed", True)
    assert read(files, "lost", "evaluation.json")["per_request"]["s_l"] == [100.0] * 12
    assert summary["evaluate"]["scores"]["s_q"] == {"not_measured": "judging has not ended"}
    with serving(ProbedServer(judging=six_scores)) as server:
        assert front_door(words_of(files, "lost", *judged_by(server), *more, "run.resume=auto")) == 0
        assert len(server.bodies) == 10  # two replies were kept
    assert read(files, "lost", "evaluation.json")["per_request"]["s_q"] == pytest.approx([83.3333333] * 12)
    with serving(ProbedServer([down], six_scores)) as server:
        gone = judged_by(server)
    assert front_door(words_of(files, "nobody", *gone)) == 2
    assert "gave no reply to a short request" in capsys.readouterr().err
    assert not (files / "runs/nobody/evaluation.json").exists()


def test_arena_write_plays_both_orders_and_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    questions = [{"idx": i, "question": f"Question {i}?", "type": "essay", "length": 10} for i in range(3)]
    requests_file(tmp_path, questions)
    for name, answer in (("north", "a good answer"), ("south", "an answer")):
        write_lines(tmp_path / f"{name}.jsonl", [{"idx": i, "baseline_response": answer} for i in range(3)])
    baselines = f"benchmark.baselines={{north: {tmp_path / 'north.jsonl'}, south: {tmp_path / 'south.jsonl'}}}"
    prompts = [row["question"] for row in questions]
    mixed = ["good and good", "good it is", "bad"]
    with serving(ProbedServer(judging=by_good_words)) as server:
        more = [*judged_by(server), "benchmark=arena_write", baselines]
        texts_file(tmp_path, prompts, mixed)
        assert front_door(words_of(tmp_path, "mixed", *more)) == 0
        assert len(server.bodies) == 12  # 3 texts, 2 baselines, 2 orders
        texts_file(tmp_path, prompts, ["good good"] * 3)
        assert front_door(words_of(tmp_path, "fine", *more)) == 0
    scores = read(tmp_path, "mixed", "evaluation.json")["overall"]["scores"]
    # Against north: won, tied, lost; against south: won, won, tied.
    assert scores["by_baseline"]["north"]["pairs"] == {"win": 1, "tie": 1, "loss": 1}
    assert scores["by_baseline"]["south"]["pairs"] == {"win": 2, "tie": 1, "loss": 0}
    assert scores["arena_write"]["all"]["mean"] == pytest.approx((1 + 0.75 + 0.25) / 3)
    assert scores["rating"]["ratings"]["north"]["rating"] == 1000.0
    assert scores["order"]["first_score"]["mean"] == 0.5
    with serving(ProbedServer(judging=always_first)) as server:
        assert front_door(words_of(tmp_path, "biased", *judged_by(server), "benchmark=arena_write", baselines)) == 0
    order = read(tmp_path, "biased", "evaluation.json")["overall"]["scores"]["order"]
    assert (order["first_score"]["mean"], order["first_twice"]["mean"]) == (1.0, 1.0)

    capsys.readouterr()
    beside = ["stage=report", f"run.dir={tmp_path / 'runs'}", "evaluate.bootstrap_resamples=50"]
    assert front_door([*beside, "run.name=both", "report.runs=[mixed,fine]"]) == 0
    found = read(tmp_path, "both", "summary.json")["side_by_side"]
    assert [one["mean"] for one in found["scores"]["arena_write"]] == pytest.approx([2 / 3, 1.0])
    assert found["against_first"][0]["scores"]["arena_write"]["difference"]["mean"] == pytest.approx(1 / 3)
    assert set(found["rating"]["ratings"]) == {"mixed", "fine", "north", "south"}
    assert "Arena-Write, mean score of fine (1.00)" in capsys.readouterr().out
    page = (tmp_path / "runs/both/report.html").read_text()
    assert "Difference to mixed" in page
    assert "<dt>Evaluations</dt><dd>mixed, fine</dd>" in page
    assert "mixed, fine: not the whole benchmark." in page
    for words in ("Steps", "Tokens generated", "Tokens trained", "Policy version", "tokens of the plan"):
        assert words not in page
    assert front_door([*beside, "run.name=both", "report.runs=[fine,mixed]"]) == 0
    assert read(tmp_path, "both", "summary.json")["side_by_side"]["names"] == ["fine", "mixed"]
    capsys.readouterr()
    for words, says in (
        (["run.name=fine", "report.runs=[mixed,fine]"], "fine holds a run of stage=evaluate: give the comparison"),
        (["run.name=x", "report.runs=[mixed]"], "1 evaluation to put side by side: at least two"),
        (["run.name=x", "report.runs=[mixed,absent]"], "report.runs: 'absent' is neither a folder here nor a run in"),
        (["run.name=x", "report.runs=[mixed,both]"], "both: holds no evaluation.json; name the run folder"),
    ):
        assert front_door([*beside, *words]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "runs" / "x").exists()


def test_writingbench_asks_once_a_criterion(tmp_path: Path):
    rows = [
        {"index": 7, "domain1": "Law", "domain2": "Wills", "query": "Write a will.",
         "checklist": [criterion_row("plot"), criterion_row("style")]},
        {"index": 9, "domain1": "Art", "domain2": "Song", "query": "Write a song.",
         "checklist": [criterion_row("tone")]},
    ]  # fmt: skip
    requests_file(tmp_path, rows)
    texts_file(tmp_path, [row["query"] for row in rows], ["good", "good good"])
    with serving(ProbedServer(judging=by_good_words)) as server:
        assert front_door(words_of(tmp_path, "wb", "benchmark=writingbench", *judged_by(server))) == 0
        assert len(server.bodies) == 3
    scores = read(tmp_path, "wb", "evaluation.json")["overall"]["scores"]
    # Scores of 4, 4 and 7: the overall mean is over criteria, a domain's over its requests.
    assert scores["overall"]["mean"] == 5.0
    assert {name: one["mean"] for name, one in scores["domain1"].items()} == {"Art": 7.0, "Law": 4.0}
    assert "WritingBench, mean of all criteria 5.00" in (tmp_path / "runs/wb/report.html").read_text()
