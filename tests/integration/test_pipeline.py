"""`run=zero_smoke` as its README line says: stopped in the middle by SIGTERM, continued, and compared at its end."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.harness import Finished, on_device, read_json, read_lines, staged_leftovers, start, succeed
from tests.metric_docs import undocumented

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
STAGES = {
    "base": "evaluate", "rl_direct": "rl", "direct": "evaluate", "rl_think": "rl", "think": "evaluate",
    "plans": "curate", "pretrain": "pretrain", "rl_pretrained_think": "rl", "pretrained_think": "evaluate",
    "train_sft": "sft", "sft": "evaluate",
}  # fmt: skip
ARMS = ["base", "direct", "think", "pretrained_think", "sft"]


@dataclass(frozen=True)
class PipelineRun:
    folder: Path
    stopped: dict[str, Any]
    """The parent's summary after the first job."""
    base_files: dict[str, bytes]
    """Of the first stage, as the first job left them."""
    first: Finished
    second: Finished
    left_staged: set[str]

    def summary(self, stage: str) -> dict[str, Any]:
        return read_json(self.folder / stage / "summary.json")

    def config(self, stage: str) -> dict[str, Any]:
        return yaml.safe_load((self.folder / stage / "config.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, device: str) -> PipelineRun:
    """Run the preset; the first job is stopped while the second stage starts its engine."""
    place = tmp_path_factory.mktemp("zero")
    words = ["run=zero_smoke", f"run.dir={place}/runs", "run.resume=auto", *on_device(device)]
    folder, staged = place / "runs" / "zero_smoke", staged_leftovers()
    child = start(words, place / "first.txt")
    child.wait_until(lambda: (folder / "rl_direct" / "placement.json").exists(), 200, "the second stage")
    child.send(signal.SIGTERM)
    first = child.finish(100)
    stopped = read_json(folder / "summary.json")
    base_files = {name: (folder / "base" / name).read_bytes() for name in ("summary.json", "texts.jsonl")}
    second = succeed(words, place / "second.txt", timeout_s=500)
    return PipelineRun(folder, stopped, base_files, first, second, staged_leftovers() - staged)


def test_sigterm_ends_the_stage_and_the_pipeline_in_order(zero: PipelineRun):
    assert zero.first.returncode == 130
    assert (zero.stopped["status"], zero.stopped["steps"]) == ("interrupted", 1)
    statuses = [row["status"] for row in zero.stopped["pipeline"]["stages"]]
    assert statuses == ["completed", "interrupted", *["not_begun"] * 9]
    assert "side_by_side" not in zero.stopped


def test_the_second_job_goes_on_where_the_first_stopped(zero: PipelineRun):
    assert zero.second.lines("[zero_smoke] it has completed: ") == [
        f"[zero_smoke] it has completed: {zero.folder / 'base'}"
    ]
    assert {name: (zero.folder / "base" / name).read_bytes() for name in zero.base_files} == zero.base_files
    assert [zero.summary(stage)["attempt"] for stage in STAGES] == [1, 2, *[1] * 9]
    assert zero.left_staged == set()


def test_every_stage_completes_in_a_run_folder_of_its_own(zero: PipelineRun):
    summary = read_json(zero.folder / "summary.json")
    rows = summary["pipeline"]["stages"]
    assert {row["name"]: row["stage"] for row in rows} == STAGES
    assert {row["status"] for row in rows} == {"completed"}
    assert (summary["stage"], summary["status"], summary["steps"], summary["attempt"]) == (
        "pipeline",
        "completed",
        11,
        2,
    )
    for stage, kind in STAGES.items():
        made = {p.name for p in (zero.folder / stage).iterdir()}
        assert {"config.yaml", "manifest.json", "metrics.jsonl", "summary.json", "report.html"} <= made
        assert ("export" in made) == (kind in ("rl", "pretrain", "sft"))
    lines = [line for line in read_lines(zero.folder / "metrics.jsonl") if not line.get("superseded")]
    assert [line["step"] for line in lines] == list(range(1, 12))
    assert [undocumented(line) for line in lines] == [set()] * 11
    assert summary["tokens"]["trained"] == sum(row["tokens"]["trained"] for row in rows) > 0


def test_what_one_stage_makes_the_next_one_reads(zero: PipelineRun):
    home = str(zero.folder)
    base = zero.config("base")["model"]["path"]
    assert {s: zero.config(s)["model"]["path"].replace(home, "").replace(base, "base") for s in STAGES} == {
        "base": "base", "rl_direct": "base", "direct": "/rl_direct/export", "rl_think": "base",
        "think": "/rl_think/export", "plans": "base", "pretrain": "base", "rl_pretrained_think": "/pretrain/export",
        "pretrained_think": "/rl_pretrained_think/export", "train_sft": "base", "sft": "/train_sft/export",
    }  # fmt: skip
    arms = {stage: zero.config(stage)["template"]["arm"] for stage in ("direct", "think", "pretrained_think", "sft")}
    assert arms == {"direct": "direct", "think": "think", "pretrained_think": "think", "sft": "direct"}
    data = zero.summary("pretrain")["pretrain"]["data"]
    assert (data["documents"]["share"], data["plans"]["share"]) == (0.99, 0.01)
    assert data["plans"]["documents"] == zero.summary("plans")["curate"]["samples"]["kept"] > 0
    # SFT stops with the step that reaches as many trained tokens as RL with a plan had.
    rl_tokens, sft = zero.summary("rl_think")["tokens"]["trained"], zero.summary("train_sft")
    assert zero.config("train_sft")["sft"]["max_tokens"] == rl_tokens
    steps = [line["train/tokens"] for line in read_lines(zero.folder / "train_sft" / "metrics.jsonl")]
    assert sum(steps[:-1]) < rl_tokens <= sum(steps) == sft["tokens"]["trained"]


def test_the_arms_stand_side_by_side(zero: PipelineRun):
    found = read_json(zero.folder / "summary.json")["side_by_side"]
    assert found["names"] == ARMS
    assert found["num_requests"] == [4] * 5
    for index, arm in enumerate(ARMS):
        own = read_json(zero.folder / arm / "evaluation.json")["per_request"]["num_words"]
        assert found["scores"]["num_words"][index]["mean"] == pytest.approx(sum(own) / 4, abs=1e-9)
    assert [against["after"] for against in found["against_first"]] == ARMS[1:]
    for against in found["against_first"]:
        words, gap = against["scores"]["num_words"], against["scores"]["num_words"]["difference"]
        assert gap["low"] <= gap["mean"] <= gap["high"]
        assert gap["mean"] == pytest.approx(words["after"] - words["before"], abs=1e-9)
    page = (zero.folder / "report.html").read_text(encoding="utf-8")
    assert "11 of 11 stages have completed." in page
    assert "Difference to base" in page
    assert "stage=sft" in page
