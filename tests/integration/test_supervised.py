"""stage=pretrain loses a rank and gives every token once; stage=sft goes on from its export, on the other backend."""

import importlib.util
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from launch.compose import compose
from lwz_ray.corpus import load_corpus
from tests.integration.harness import (
    assert_balanced,
    complete_checkpoints,
    has_more_than_a_checkpoint,
    learners_of,
    read_json,
    read_lines,
    start,
    succeed,
)
from tests.metric_docs import undocumented

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]
WORDS = ["river", "stone", "light", "window", "garden", "old", "road", "house", "winter", "song", "reads", "harbour"]
STEPS = 24
BACKEND = "deepspeed" if importlib.util.find_spec("deepspeed") else "fsdp"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 60 books, 30 plans and 40 chat pairs, one of them too long and one without an answer."""
    folder, rng = tmp_path_factory.mktemp("supervised"), random.Random(0)

    def text(sentences: int) -> str:
        return " ".join(" ".join(rng.choices(WORDS, k=8)).capitalize() + "." for _ in range(sentences))

    rows: dict[str, list[dict[str, Any]]] = {
        "books": [{"text": text(rng.randint(2, 20))} for _ in range(60)],
        "plans": [{"text": "Plan: " + text(2)} for _ in range(30)],
        "pairs": [{"prompt": f"Write about the {rng.choice(WORDS)}.", "answer": text(2)} for _ in range(38)],
    }
    rows["pairs"] += [{"prompt": "Too long", "answer": text(60)}, {"prompt": "No answer", "answer": ""}]
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def pretrain_words(place: Path, models: Path) -> list[str]:
    sources = f"{{books: {{path: {place}/books.jsonl, weight: 9}}, plans: {{path: {place}/plans.jsonl}}}}"
    return [
        "run=pretrain_demo", f"run.dir={place}", "run.name=pretrain", f"model.path={models}/tiny-random",
        f"corpus.sources={sources}", "corpus.held_out_documents=3", "model.max_length_tokens=128", f"steps={STEPS}",
        "learners.microbatch_tokens=256", "learners.threads=1",
        "learners.dtype=float32", "optimizer.lr=0.003", "run.resume=auto", "run.checkpoint_every_steps=4",
        "run.keep_checkpoints=10", "eval.every_steps=20", "failures.heartbeat_every_s=1", "tracking.progress=false",
    ]  # fmt: skip


def sft_words(place: Path) -> list[str]:
    return [
        "run=sft_demo", f"run.dir={place}", "run.name=sft", f"model.path={place}/pretrain/export",
        f"sft.path={place}/pairs.jsonl", "sft.samples_per_step=4", "sft.max_tokens=1500", "steps=100",
        f"learners={BACKEND}", "model.max_length_tokens=256", "learners.microbatch_tokens=512", "learners.threads=1",
        "learners.dtype=float32", "optimizer.lr=0.003", "tracking.progress=false",
    ]  # fmt: skip


@dataclass(frozen=True)
class Story:
    """Both runs' folders and summaries, and what the first one said."""

    pretrain: Path
    sft: Path
    summaries: dict[str, dict[str, Any]]
    said: str


@pytest.fixture(scope="module")
def story(place: Path, models_dir: Path) -> Story:
    folder = place / "pretrain"
    child = start(pretrain_words(place, models_dir), place / "pretrain.txt")
    child.wait_until(lambda: has_more_than_a_checkpoint(folder), 150, "a step after a checkpoint")
    learners_of(child)[-1].kill()
    done = child.finish(200)
    assert done.returncode == 0, done.output[-4000:]
    succeed(sft_words(place), place / "sft.txt")
    summaries = {name: read_json(place / name / "summary.json") for name in ("pretrain", "sft")}
    return Story(folder, place / "sft", summaries, done.output)


def test_a_lost_rank_costs_no_token(story: Story, place: Path, models_dir: Path):
    summary = story.summaries["pretrain"]
    assert (summary["stage"], summary["status"], summary["error"]) == ("pretrain", "completed", None)
    assert (summary["steps"], summary["policy_version"], summary["restarts"]) == (STEPS, STEPS, 1)
    rows = [r for r in read_lines(story.pretrain / "metrics.jsonl") if not r.get("superseded")]
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1))
    assert {r["attempt"] for r in rows} == {1, 2}
    # What the data gives by itself, step by step, is what the run was given through the loss of a rank.
    config = compose(pretrain_words(place, models_dir))
    batches = load_corpus(config, AutoTokenizer.from_pretrained(config.model.path))
    total = 0
    for row in rows:
        samples = batches.next()
        for number, name in enumerate(("books", "plans")):
            tokens = sum(s.num_trained for s in samples if s.source == number)
            assert row[f"source/{name}_tokens"] == tokens
            total += tokens
        assert (row["train/total_tokens"], row["train/samples"]) == (total, len(samples))
    assert summary["tokens"]["trained"] == total
    assert summary["pretrain"]["data"] == json.loads(json.dumps(batches.counts))
    assert_balanced(summary["groups"])


def test_it_reads_better_and_says_so(story: Story):
    summary = story.summaries["pretrain"]["pretrain"]
    before, after, gap = summary["before"], summary["after"], summary["difference"]
    # A random model is as good as a die with 49,152 sides; twelve words are learned in a few steps.
    assert before["loss"]["mean"] == pytest.approx(math.log(49152), rel=0.05)
    assert after["loss"]["mean"] < before["loss"]["mean"] - 1.0
    assert gap["loss"]["mean"] == pytest.approx(after["loss"]["mean"] - before["loss"]["mean"])
    assert gap["loss"]["low"] <= gap["loss"]["mean"] <= gap["loss"]["high"] < 0
    assert [r["source"] for r in after["by_source"]] == ["books", "plans"]
    assert [r["num_texts"] for r in after["by_source"]] == [3, 3]
    rows = read_lines(story.pretrain / "metrics.jsonl")
    for row in rows:
        assert undocumented(row) == set()
    (looked,) = [r for r in rows if "validation/loss" in r and not r.get("superseded")]
    assert looked["step"] == 20
    assert after["loss"]["mean"] < looked["validation/loss"] < before["loss"]["mean"]
    assert looked["validation/perplexity"] == pytest.approx(math.exp(looked["validation/loss"]))
    assert complete_checkpoints(story.pretrain) == [4, 8, 12, 16, 20, 24]
    page = (story.pretrain / "report.html").read_text(encoding="utf-8")
    assert "On held-out texts the perplexity fell from" in page and "Loss by source" in page
    assert "Held-out texts" in story.said


def test_sft_goes_on_from_the_export_until_its_budget(story: Story):
    summary = story.summaries["sft"]
    found, data = summary["sft"], summary["sft"]["data"]
    assert (summary["status"], summary["steps"]) == ("completed", found["foreseen_steps"])
    assert (data["read"], data["bad_rows"], data["too_long"]) == (40, 1, 1)
    assert data["train"] + data["held_out"] == 38
    rows = read_lines(story.sft / "metrics.jsonl")
    # The budget ends the run with the step that reaches it, and the rate was laid out for just these steps.
    assert rows[-2]["train/total_tokens"] < 1500 <= rows[-1]["train/total_tokens"] == summary["tokens"]["trained"]
    assert summary["steps"] == len(rows) < 100
    assert 0 < rows[-1]["train/lr"] < 0.5 * rows[2]["train/lr"]
    assert {r["train/samples"] for r in rows} == {4}
    assert found["after"]["loss"]["mean"] < found["before"]["loss"]["mean"]
    tokenizer = AutoTokenizer.from_pretrained(story.sft / "export")
    model: Any = AutoModelForCausalLM.from_pretrained(story.sft / "export")
    assert (type(model).__name__, len(tokenizer)) == ("LlamaForCausalLM", 49152)
