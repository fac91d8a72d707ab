"""`recipe=chat_logs` against a real server on loopback: requests with ranges, accounts, bad replies, bad input."""

import json
from pathlib import Path

import pytest

from launch.preflight_chat_logs import check
from lwz_ray.data import load_prompts
from lwz_ray.errors import UserError
from tests.integration.harness import read_json, read_lines
from tests.metric_docs import undocumented
from tests.unit.launch.chat_curator_parts import config_of, curate, sorting
from tests.unit.rewards.judge_server import JudgeServer


async def test_chat_logs_become_requests_that_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"query": "把“早上好”翻译成英文"}) + "\n" + json.dumps({"query": "other"}) + "\n")
    async with sorting() as server:
        config = config_of(tmp_path, server, f"curate.chat_logs.benchmarks.mine={bench}")
        assert await curate(config) == 0
    folder, out = tmp_path / "logs", capsys.readouterr().out
    rows = {row["id"].removeprefix("wildchat-"): row for row in read_lines(folder / "requests.jsonl")}
    assert {key: (row["length_range"], row["range_from"], row["language"]) for key, row in rows.items()} == {
        "d01": ([1080, 1320], "request", "en"),
        "d03": ([1000, 1500], "model", "en"),
        "d05": ([2000, 2200], "request", "zh"),
        "d13": ([2000, 3000], "model", "en"),
        "d15": ([2500, 3500], "request", "en"),
        "d16": ([800, 1200], "model", "zh"),
        "d21": ([900, 1400], "model", "en"),
        "d22": ([1350, 1650], "request", "zh"),
    }
    found = read_json(folder / "summary.json")["curate"]
    assert found["rows"] == {
        "read": 24, "candidates": 16, "bad_rows": 0, "no_request": 1, "flagged": 2, "other_language": 2, "too_long": 0,
        "duplicate": 1, "overlap": 1, "near_duplicate": 1,
    }  # fmt: skip
    assert found["decided"] == {
        "kept": 8, "not_needed": 5, "unfulfillable": 1, "out_of_limits": 1, "too_wide": 0, "unreadable": 1,
        "refused": 0,
    }  # fmt: skip
    # d24: 1150 is no multiple of 100, so it was asked three times.
    assert found["unreadable_replies"] == 3
    assert found["contamination"] == {"mine": {"requests": 2, "found": 1, "rows": 1}}
    assert read_json(folder / "contamination.json")["hits"][0] == {
        "benchmark": "mine", "request": 0, "share": 1.0, "place": "line 17",
        "source": "package://lwz_ray/prompts/chat_logs.jsonl",
    }  # fmt: skip
    assert found["upper_words"] == {
        "1-250": 0, "251-500": 0, "501-1000": 0, "1001-2000": 5, "2001-4000": 3, "4001-8000": 0, "8001-12000": 0,
        "above 12000": 0,
    }  # fmt: skip
    # 16 requests, of which 5 state their length. Prices a million tokens: 1 of prompts, 2 of 27 x 512 of replies.
    (line,) = [line for line in out.splitlines() if line.startswith("asking sorter at http")]
    assert "at most 27 calls with about " in line
    assert line.endswith("cost at most about 0.04")
    # What the next stage does with them.
    data = config.data.model_copy(update={"path": str(folder / "requests.jsonl")})
    prompts = load_prompts(data, "error", lambda _: 1)
    assert prompts.counts["kept"] == prompts.counts["read"] == 8
    assert prompts.prompts[1].length_range == (1000, 1500)
    lines = read_lines(folder / "metrics.jsonl")
    assert [undocumented(line) for line in lines] == [set()] * len(lines)
    assert lines[-1]["curate/requests"] == 8
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Overlap with benchmarks" in page and "cannot be fulfilled" in page
    assert "Similarity of near-duplicates" in page and "Samples a prompt" not in page
    assert "hurt my neighbour" not in page + (folder / "samples.jsonl").read_text(encoding="utf-8")


async def test_a_reply_that_cannot_be_read_is_asked_for_again_then_counted(tmp_path: Path):
    async with sorting() as server:
        server.broken = ("beekeepers",)
        assert await curate(config_of(tmp_path, server, "curate.chat_logs.max_attempts=2")) == 0
        asked = [b for b in server.bodies if "beekeepers" in b["messages"][-1]["content"]]
    assert [(b["seed"], b["temperature"]) for b in asked] == [(1, 0.0), (2, 0.7)]
    found = read_json(tmp_path / "logs" / "summary.json")["curate"]
    assert (found["decided"]["unreadable"], found["unreadable_replies"]) == (2, 4)
    assert "d13" not in (tmp_path / "logs" / "requests.jsonl").read_text()


async def test_a_run_that_keeps_nothing_says_why(tmp_path: Path):
    async with sorting() as server:
        server.broken = ("",)
        config = config_of(tmp_path, server, "curate.chat_logs.max_attempts=1", "curate.chat_logs.max_rows=2")
        assert await curate(config) == 0
    (warning,) = read_lines(tmp_path / "logs" / "warnings.jsonl")
    assert warning["message"].startswith("no request was kept: 2 unreadable;")
    assert (tmp_path / "logs" / "requests.jsonl").read_text() == ""


async def test_logs_of_which_nothing_is_left_end_with_the_reasons(tmp_path: Path):
    async with sorting() as server:
        config = config_of(tmp_path, server, "curate.chat_logs.max_rows=1", "data.languages=[zh]")
        with pytest.raises(UserError, match=r"no request is left of 1 rows \(1 other_language\)"):
            await curate(config)
        assert server.bodies == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["curate.chat_logs.paths=[]"], r"needs chat logs: curate\.chat_logs\.paths="),
        (["curate.chat_logs.paths=[none.jsonl]"], r"curate\.chat_logs\.paths: .*no such file"),
        (["curate.chat_logs.paths=[package://lwz_ray/prompts/train.jsonl]"], "conversation_hash or conversation_id"),
        (["curate.chat_logs.benchmarks.b=none.jsonl"], r"curate\.chat_logs\.benchmarks\.b: .*no such file"),
        (["judge.base_url=null"], r"judge\.base_url=null"),
        (["curate.chat_logs.max_upper_words=50"], "no range fits"),
        (["curate.chat_logs.asked=engine", "model.path=/none"], r"model\.path='/none': no such folder"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_asked(tmp_path: Path, words: list[str], said: str):
    server = JudgeServer()
    server.base_url = "http://127.0.0.1:1/v1"
    with pytest.raises(UserError, match=said) as problem:
        check(config_of(tmp_path, server, *words))
    assert "\n" not in str(problem.value)
