"""`stage=generate` on real Ray and vLLM: a request that streams, is interrupted, and goes on from a file of prompts.

What needs no engine, such as a text that is shown again, is in tests/unit/launch/test_generate_stage.py.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import REPO_ROOT, environment, on_device, read_json, read_lines, succeed
from tests.metric_docs import undocumented

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
REQUEST = "Write about rain = water in 50 words."
NUM = 3
TOKENS = 300


def words_of(folder: Path, model: Path, device: str) -> list[str]:
    return [
        "run=generate_demo", f"run.dir={folder}", "run.name=texts", f"model.path={model}",
        f"sampling.max_tokens={TOKENS}", "model.max_length_tokens=512", "data.max_prompt_tokens=100",
        f"generate.samples_per_prompt={NUM}",
        "actors.repetition_stop.enabled=false", "actors.kv_cache_mib=64", "actors.num_cpus=0.8", *on_device(device),
    ]  # fmt: skip


def kept(folder: Path) -> list[dict[str, Any]]:
    return [line for path in folder.glob("texts/written/*.jsonl") for line in read_lines(path)]


def interrupted(words: list[str], folder: Path) -> str:
    """Run until a text is there, interrupt it, and return what it wrote to standard output."""
    command = [sys.executable, "-m", "lwz_ray.main", *words]
    with (folder / "out.txt").open("wb") as out, (folder / "err.txt").open("wb") as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, cwd=REPO_ROOT, env=environment())
        try:
            end = time.monotonic() + 200.0
            while not kept(folder):
                assert child.poll() is None and time.monotonic() < end, (folder / "err.txt").read_text()
                time.sleep(0.02)
            child.send_signal(signal.SIGINT)
            assert child.wait(60.0) == 130
        finally:
            child.kill()
    return (folder / "out.txt").read_text(encoding="utf-8")


def test_a_request_streams_and_nothing_is_written_twice(tmp_path: Path, tiny_model_dir: Path, device: str):
    words, folder = words_of(tmp_path, tiny_model_dir, device), tmp_path / "texts"
    folder.mkdir()
    (folder / "texts.jsonl").write_text("of other requests")
    shown = interrupted([*words, f"generate.text={REQUEST}"], tmp_path)
    first, summary = kept(tmp_path), read_json(folder / "summary.json")
    assert 0 < len(first) < NUM
    assert (summary["status"], summary["generate"]["texts"]) == ("interrupted", len(first))
    assert not (folder / "texts.jsonl").exists()
    # Standard output holds the works alone. A random model writes neither tags nor an end of its own.
    assert first[0]["num_tokens"] == TOKENS and first[0]["answer"] == first[0]["completion"].strip()
    assert shown.lstrip().startswith(first[0]["answer"])
    assert "run folder" not in shown

    # The same request from a file is the same text, written by way of the pool.
    row = {"prompt": REQUEST, "id": hashlib.sha256(REQUEST.encode()).hexdigest()[:12]}
    data = tmp_path / "prompts.jsonl"
    data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    done = succeed([*words, f"data.path={data}"], tmp_path / "again.txt", timeout_s=150)
    assert done.lines("1 prompts") == [f"1 prompts of 1 rows, {NUM} texts, {len(first)} are there already"]
    texts, summary = read_lines(folder / "texts.jsonl"), read_json(folder / "summary.json")
    assert [text["sample_index"] for text in texts] == list(range(NUM))
    assert len({text["completion"] for text in texts}) == NUM
    assert texts[: len(first)] == first
    assert summary["tokens"]["generated"] == sum(text["num_tokens"] for text in texts[len(first) :])
    account = summary["generate"]
    assert (account["texts"], account["wanted"], account["asked_for_length"]) == (NUM, NUM, NUM)
    assert account["finish_reasons"] == {"stop": 0, "length": NUM, "repetition": 0, "abort": 0}
    samples = [line for line in read_lines(folder / "samples.jsonl") if not line.get("superseded")]
    assert sorted(line["sample_index"] for line in samples) == list(range(NUM))
    assert samples[-1]["length_range"] == [45, 55]
    lines = read_lines(folder / "metrics.jsonl")
    assert (lines[-1]["step"], lines[-1]["generate/texts"]) == (NUM, NUM)
    assert [undocumented(line) for line in lines] == [set()] * len(lines)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Texts, not selected" in page and REQUEST in page
