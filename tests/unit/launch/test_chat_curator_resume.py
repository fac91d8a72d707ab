"""`recipe=chat_logs` goes on: after a server that went down, an interruption, and with other settings or files."""

import json
from pathlib import Path

import pytest

from launch.chat_curate_store import asking_key
from lwz_ray.errors import UserError
from tests.integration.harness import read_json, read_lines
from tests.unit.launch.chat_curator_parts import config_of, curate, sorting
from tests.unit.rewards.judge_server import JudgeServer


async def test_a_server_that_goes_down_loses_nothing_and_nothing_is_asked_twice(tmp_path: Path):
    async with sorting() as server:
        whole = config_of(tmp_path, server, name="whole")
        assert await curate(whole) == 0
        num_asked = len(server.bodies)
        server.bodies.clear()
        server.stopped_at = 9
        config = config_of(tmp_path, server)
        with pytest.raises(UserError, match=r"requests in a row were left without a reply, .*run\.resume=auto"):
            await curate(config)
        folder = tmp_path / "logs"
        summary = read_json(folder / "summary.json")
        decided = sum(summary["curate"]["decided"].values())
        assert (summary["status"], 0 < decided < 17) == ("failed", True)
        assert not (folder / "requests.jsonl").exists()
        (path,) = (folder / "curated").glob("decided-*.jsonl")
        with path.open("a", encoding="utf-8") as file:
            file.write('{"id": "wildchat-d2')  # what a kill leaves
        server.stopped_at = None
        server.bodies.clear()
        assert await curate(config) == 0
        # One of them is the probe, answered before in this folder.
        assert len(server.bodies) == num_asked - 9
        assert (folder / "requests.jsonl").read_bytes() == (tmp_path / "whole" / "requests.jsonl").read_bytes()
        server.bodies.clear()
        assert await curate(config) == 0
        assert server.bodies == []
        again = read_json(folder / "summary.json")["curate"]
        assert again["decided"] == read_json(tmp_path / "whole" / "summary.json")["curate"]["decided"]


async def test_an_interrupted_run_keeps_what_is_decided_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    async with sorting() as server:
        whole = config_of(tmp_path, server, name="whole")
        assert await curate(whole) == 0
        server.bodies.clear()
        server.interrupts_at = 9
        config = config_of(tmp_path, server)
        assert await curate(config) == 130
        server.interrupts_at = None
        folder = tmp_path / "logs"
        summary = read_json(folder / "summary.json")
        decided = [row["id"] for path in (folder / "curated").glob("decided-*") for row in read_lines(path)]
        assert (summary["status"], summary["error"]) == ("interrupted", None)
        assert 0 < sum(summary["curate"]["decided"].values()) == len(decided) < 17
        assert not (folder / "requests.jsonl").exists()
        said = capsys.readouterr().out.splitlines()
        assert said.count("SIGINT: ending now; what is done is kept") == 1
        assert await curate(config) == 0
        assert (folder / "requests.jsonl").read_bytes() == (tmp_path / "whole" / "requests.jsonl").read_bytes()
        (path,) = (folder / "curated").glob("decided-*")
        after = [row["id"] for row in read_lines(path)]
        assert after[: len(decided)] == decided
        assert len(after) == len(set(after)) == 17


async def test_a_server_that_refuses_schemas_refuses_no_requests_of_a_run_that_goes_on(tmp_path: Path):
    async with sorting() as server:
        server.stopped_at, server.refuses_schemas = 9, True
        with pytest.raises(UserError, match="without a reply"):
            await curate(config_of(tmp_path, server, "judge.structured_output=none"))
        server.stopped_at = None
        with pytest.raises(UserError, match=r"gave no reply to a short request: .*judge\.structured_output"):
            await curate(config_of(tmp_path, server, "judge.structured_output=json_schema"))
        assert await curate(config_of(tmp_path, server, "judge.structured_output=none")) == 0
    assert read_json(tmp_path / "logs" / "summary.json")["curate"]["decided"]["refused"] == 0


async def test_another_attempt_at_what_is_done_needs_nobody_and_shows_it_once(tmp_path: Path):
    folder, bench = tmp_path / "logs", tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"query": "把“早上好”翻译成英文"}) + "\n")
    async with sorting() as server:
        config = config_of(tmp_path, server, f"curate.chat_logs.benchmarks.mine={bench}")
        assert await curate(config) == 0
    examples = read_lines(folder / "samples.jsonl")
    (folder / "contamination.json").unlink()
    assert await curate(config) == 0
    assert len(read_json(folder / "contamination.json")["hits"]) == 1
    again = read_lines(folder / "samples.jsonl")
    assert [line.get("superseded", False) for line in again] == [True] * len(examples) + [False] * len(examples)
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [0, 16, 16]


async def test_no_engine_is_started_where_everything_is_decided(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "logs"
    async with sorting() as server:
        assert await curate(config_of(tmp_path, server)) == 0
        before = (folder / "requests.jsonl").read_bytes()
        config = config_of(tmp_path, server, "curate.chat_logs.asked=engine", f"model.path={tiny_model_dir}")
    (path,) = (folder / "curated").glob("decided-*")
    path.rename(path.with_name(f"decided-{asking_key(config)}.jsonl"))
    (folder / "requests.jsonl").unlink()
    capsys.readouterr()
    assert await curate(config) == 0
    assert (folder / "requests.jsonl").read_bytes() == before
    assert "starting engines" not in capsys.readouterr().out
    assert read_json(folder / "summary.json")["curate"]["asked"] == {}


def test_decisions_of_a_model_that_was_trained_on_are_not_taken_for_those_of_the_new_one(tmp_path: Path):
    server = JudgeServer()
    server.base_url = "http://127.0.0.1:1/v1"
    weights = tmp_path / "model.safetensors"
    words = ("curate.chat_logs.asked=engine", f"model.path={tmp_path}")
    weights.write_bytes(b"before")
    before = asking_key(config_of(tmp_path, server, *words))
    assert asking_key(config_of(tmp_path, server, *words)) == before
    weights.write_bytes(b"afterwards")
    assert asking_key(config_of(tmp_path, server, *words)) != before


async def test_overlaps_of_benchmarks_that_are_no_longer_named_do_not_stay(tmp_path: Path):
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"query": "other"}) + "\n")
    async with sorting() as server:
        for benchmarks in ([f"curate.chat_logs.benchmarks.mine={bench}"], []):
            assert await curate(config_of(tmp_path, server, "curate.chat_logs.max_rows=1", *benchmarks)) == 0
            assert (tmp_path / "logs" / "contamination.json").exists() == bool(benchmarks)


async def test_other_logs_are_sifted_anew(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    lines = (Path(__file__).parents[3] / "lwz_ray/prompts/chat_logs.jsonl").read_text(encoding="utf-8").splitlines()
    log.write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")
    async with sorting() as server:
        config = config_of(tmp_path, server, f"curate.chat_logs.paths=[{log}]")
        assert await curate(config) == 0
        assert len(read_lines(tmp_path / "logs" / "requests.jsonl")) == 2
        num_asked = len(server.bodies)
        log.write_text("\n".join(lines[:5]) + "\n", encoding="utf-8")
        assert await curate(config) == 0
        assert [r["id"] for r in read_lines(tmp_path / "logs" / "requests.jsonl")] == [
            "wildchat-d01", "wildchat-d03", "wildchat-d05",
        ]  # fmt: skip
        # d04 is no long text, d05 states its length: one question each, the rest is known.
        assert len(server.bodies) == num_asked + 2
