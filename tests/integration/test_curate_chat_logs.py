"""`recipe=chat_logs` with a real engine: every conversation and every reply accounted for."""

from pathlib import Path

import pytest

from tests.integration.harness import on_device, read_json, read_lines, succeed

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]


def test_an_engine_is_asked_about_every_request(tmp_path: Path, tiny_model_dir: Path, device: str):
    words = [
        "run=curate_logs", f"run.dir={tmp_path}", f"model.path={tiny_model_dir}", "model.max_length_tokens=1024",
        "curate.chat_logs.max_rows=5", "curate.chat_logs.max_attempts=2", "curate.chat_logs.max_reply_tokens=48",
        "actors.kv_cache_mib=64", "actors.num_cpus=0.8", *on_device(device),
    ]  # fmt: skip
    succeed(words, tmp_path / "log.txt", timeout_s=120)
    folder = tmp_path / "curate_logs"
    summary = read_json(folder / "summary.json")
    found = summary["curate"]
    assert (summary["status"], summary["error"]) == ("completed", None)
    assert (found["rows"]["read"], found["rows"]["candidates"]) == (5, 5)
    assert (sum(found["decided"].values()), found["without_reply"]) == (5, {})
    # A model with random weights may or may not end its object in time: each question was asked once or twice.
    replies = read_lines(folder / "asked" / "curate.jsonl")
    assert 5 <= len(replies) <= 20
    assert found["asked"]["calls"] == len(replies)
    assert summary["tokens"]["generated"] == sum(row["completion_tokens"] for row in replies)
    assert len(read_lines(folder / "requests.jsonl")) == found["decided"]["kept"]
