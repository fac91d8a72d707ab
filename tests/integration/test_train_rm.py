"""`stage=train_rm` on a real Ray runtime: a tiny model learns to tell texts from worse ones, on either backend."""

import importlib.util
import json
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.harness import (
    Finished,
    assert_balanced,
    complete_checkpoints,
    read_json,
    read_lines,
    run,
    start,
    succeed,
)
from tests.metric_docs import undocumented

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
WORDS = [
    "river",
    "stone",
    "light",
    "window",
    "garden",
    "winter",
    "paper",
    "quiet",
    "letter",
    "morning",
    "road",
    "field",
    "music",
    "bread",
    "harbour",
]
STEPS = 16
BACKENDS = ["fsdp", pytest.param("deepspeed", marks=pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"))]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 42 pairs of 14 sources, one of them with a text of over 200 tokens."""
    folder, rng = tmp_path_factory.mktemp("rm"), random.Random(0)
    rows = []
    for source in range(14):
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(5, 9))).capitalize() + "." for _ in range(4)]
        good = " ".join(sentences)
        worse = {
            "shout": good.upper(),
            "cut": good[: len(good) // 2],
            "mix": " ".join(["河流 石头 光", *sentences[1:], "窗户 花园"]),
        }
        for kind, bad in worse.items():
            text = bad * 20 if (source, kind) == (3, "mix") else bad
            rows.append({"prompt": f"Topic {source}", "chosen": good, "rejected": text, "kind": kind, "source": source})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return folder


def words(models: Path, place: Path, name: str, *more: str) -> list[str]:
    return [
        "run=rm_demo", f"run.dir={place}", f"run.name={name}", f"model.path={models}/tiny-random",
        f"preference.path={place}/pairs.jsonl", "preference.eval_path=null", "preference.pairs_per_step=8",
        "model.max_length_tokens=200", "data.max_prompt_tokens=100", "sampling.max_tokens=100", f"steps={STEPS}",
        "run.checkpoint_every_steps=4", "run.keep_checkpoints=10", "optimizer.lr=0.003", "optimizer.warmup_steps=1",
        "learners.ranks=2", "learners.num_cpus=0.5", "learners.threads=1", "learners.microbatch_tokens=512",
        "learners.dtype=float32", "tracking.wandb=false", *more,
    ]  # fmt: skip


@dataclass(frozen=True)
class Trained:
    done: Finished
    folder: Path
    summary: dict[str, Any]


@pytest.fixture(scope="module", params=BACKENDS)
def trained(request: pytest.FixtureRequest, place: Path, models_dir: Path) -> Trained:
    backend: str = request.param
    given = words(models_dir, place, backend, f"learners={backend}")
    done = succeed(given, place / f"{backend}.txt")
    return Trained(done, place / backend, read_json(place / backend / "summary.json"))


def test_the_summary_says_what_was_learned(trained: Trained):
    summary, found = trained.summary, trained.summary["preference"]
    assert (summary["stage"], summary["status"], summary["error"]) == ("train_rm", "completed", None)
    assert (summary["steps"], summary["policy_version"], summary["eval"]) == (STEPS, STEPS, None)
    assert_balanced(summary["groups"])
    assert summary["groups"] == {"admitted": 128, "trained": 128, "dropped": {}, "in_flight": 0}
    assert found["rows"] == {"read": 42, "kept": 42, "bad_rows": 0}
    # 3 of 14 sources are held out; the pair over 200 tokens is dropped and counted on the side where it fell.
    train, held_out = found["train"], found["held_out"]
    assert (train["pairs"], held_out["pairs"]) == (33, 9)
    assert train["dropped_too_long"] + held_out["dropped_too_long"] == 1
    assert train["epochs"] == 128 / train["kept"]
    after = found["after"]
    assert after["num_pairs"] == held_out["kept"]
    assert after["accuracy"]["low"] <= after["accuracy"]["mean"] <= after["accuracy"]["high"]
    # Cut texts, capitals and another language are told apart by a 2-layer model in seconds; chance is one half.
    assert after["accuracy"]["mean"] >= 0.8
    assert after["log_loss"] < found["before"]["log_loss"]
    means = [row["mean"] for row in found["by_kind"]]
    assert sorted(row["kind"] for row in found["by_kind"]) == ["cut", "mix", "shout"]
    assert means == sorted(means)
    assert found["baseline_length"]["rule"] in ("longer wins", "shorter wins")
    assert sum(b["num_pairs"] for b in found["calibration"]["bins"]) == after["num_pairs"]


def test_the_lines_say_every_step_and_every_pair(trained: Trained):
    rows = read_lines(trained.folder / "metrics.jsonl")
    assert [(r["step"], r["policy_version"]) for r in rows] == [(i, i) for i in range(1, STEPS + 1)]
    for row in rows:
        assert undocumented(row) == set()
        assert row["train/pairs"] == 8
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert complete_checkpoints(trained.folder) == [4, 8, 12, 16]
    lines = read_lines(trained.folder / "samples.jsonl")
    after = trained.summary["preference"]["after"]
    assert [line["pair_index"] for line in lines] == list(range(after["num_pairs"]))
    right = [1.0 if line["chosen_score"] > line["rejected_score"] else 0.0 for line in lines]
    assert np.mean(right) == pytest.approx(after["accuracy"]["mean"])
    assert np.mean([line["chosen_score"] for line in lines]) == pytest.approx(after["score"]["chosen_mean"])
    page = (trained.folder / "report.html").read_text(encoding="utf-8")
    for words in ("Held-out pairwise accuracy", "Accuracy by length difference", "Calibration", "length alone reaches"):
        assert words in page


def test_the_export_scores_as_the_learner_did(trained: Trained):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from lwz_ray.pair_encoding import PairEncoder

    model = AutoModelForSequenceClassification.from_pretrained(trained.folder / "export", dtype=torch.float32)
    assert (type(model).__name__, model.config.num_labels) == ("LlamaForSequenceClassification", 1)
    encoder = PairEncoder(AutoTokenizer.from_pretrained(trained.folder / "export"))
    lines = read_lines(trained.folder / "samples.jsonl")
    gaps = []
    for line in lines:
        for side in ("chosen", "rejected"):
            ids = torch.tensor([encoder.encode(line["prompt"], line[side]).token_ids])
            with torch.no_grad():
                score = model(ids, attention_mask=torch.ones_like(ids)).logits.item()
            gaps.append(abs(score - line[f"{side}_score"]))
    spread = np.std([line[f"{side}_score"] for line in lines for side in ("chosen", "rejected")])
    # The export is rounded to bfloat16, 8 bits of each weight; scores spread over more than a unit.
    assert max(gaps) < 0.05 * spread


# On one backend: what the other restores is asked by its own tests.
@pytest.mark.parametrize("trained", ["fsdp"], indirect=True)
def test_a_stopped_run_continues_to_the_same_end(trained: Trained, place: Path, models_dir: Path):
    given = words(models_dir, place, "stopped", "run.resume=auto", "tracking.progress=false")
    child = start(given, place / "stopped.txt")
    child.wait_until(lambda: len(read_lines(place / "stopped" / "metrics.jsonl")) >= 3, 100, "step 3")
    child.send(signal.SIGTERM)
    done = child.finish(60)
    summary = read_json(place / "stopped" / "summary.json")
    assert (done.returncode, summary["status"], summary["error"]) == (130, "interrupted", None)
    assert 3 <= summary["steps"] < STEPS
    assert complete_checkpoints(place / "stopped")[-1] == summary["steps"]
    assert "after" not in summary["preference"]
    succeed(given, place / "continued.txt")
    keys = ("step", "policy_version", "train/loss", "train/pair_accuracy", "train/grad_norm", "train/lr", "train/epoch")
    whole, parts = (read_lines(f / "metrics.jsonl") for f in (trained.folder, place / "stopped"))
    assert [tuple(r[k] for k in keys) for r in parts] == [tuple(r[k] for k in keys) for r in whole]
    assert {r["attempt"] for r in parts} == {1, 2}
    before, after = trained.summary["preference"], read_json(place / "stopped" / "summary.json")["preference"]
    assert (after["before"], after["after"], after["by_kind"]) == (before["before"], before["after"], before["by_kind"])


def test_bad_input_is_one_line(place: Path, models_dir: Path, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "", "chosen": 1}\n'
    )
    for more, line in (
        (f"preference.path={tmp_path}/bad.jsonl", f"error: {tmp_path}/bad.jsonl, line 2: prompt='': text is needed; "),
        (f"preference.path={tmp_path}/no.jsonl", f"error: preference.path: data source '{tmp_path}/no.jsonl': no such"),
        (
            "learners.microbatch_tokens=300",
            "error: learners.microbatch_tokens=300 is below 2 x model.max_length_tokens",
        ),
    ):
        done = run(words(models_dir, place, "refused", more), tmp_path / "output.txt", timeout_s=60)
        assert done.returncode == 2
        assert len(done.output.splitlines()) == 1, done.output
        assert done.output.startswith(line)
    assert not (place / "refused").exists()
