"""`python -m lwz_ray.main run=smoke_cpu` once, as a newcomer types it, and everything that it leaves behind."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.harness import (
    REPO_ROOT,
    Finished,
    assert_balanced,
    complete_checkpoints,
    on_device,
    read_json,
    read_lines,
    run,
    staged_leftovers,
)
from tests.metric_docs import undocumented

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
CANARIES = {"OPENAI_API_KEY": "canary-6b1f0c5e9d", "MY_TOKEN": "canary-token-41c7aa20"}


@dataclass(frozen=True)
class SmokeRun:
    done: Finished
    folder: Path
    new_in_repository: set[str]
    new_staged: set[str]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, device: str) -> SmokeRun:
    """Run the preset as it is; only the run folder lies elsewhere."""
    place = tmp_path_factory.mktemp("smoke")
    listed, staged = set(os.listdir(REPO_ROOT)), staged_leftovers()
    words = ["run=smoke_cpu", f"run.dir={place}/runs", "run.name=first", *on_device(device)]
    done = run(words, place / "output.txt", environ=CANARIES)
    assert done.returncode == 0, done.output[-4000:]
    new = set(os.listdir(REPO_ROOT)) - listed
    return SmokeRun(done, place / "runs" / "first", new, staged_leftovers() - staged)


def test_every_file_of_the_contract_is_there(smoke: SmokeRun):
    names = {p.name for p in smoke.folder.iterdir()}
    assert names == {
        "checkpoints", "config.yaml", "control", "evaluation_after.json", "evaluation_before.json", "export", "lease",
        "manifest.json", "metrics.jsonl", "placement.json", "report.html", "samples.jsonl", "summary.json", "wandb",
        "warnings.jsonl",
    }  # fmt: skip
    manifest = read_json(smoke.folder / "manifest.json")
    assert (manifest["name"], manifest["attempt"], manifest["seeds"]) == ("first", 1, {"run": 1})
    assert manifest["earlier_attempts"] == []
    assert manifest["versions"]["ray"].startswith("2.60.")
    page = (smoke.folder / "report.html").read_text(encoding="utf-8")
    assert "first" in page
    assert page.rstrip().endswith("</html>")


def test_the_summary_balances_and_names_what_steered(smoke: SmokeRun):
    summary = read_json(smoke.folder / "summary.json")
    assert set(summary) == {
        "stage", "status", "steps", "skipped_steps", "policy_version", "wall_s", "groups", "tokens", "eval",
        "active_rewards", "error", "extra", "attempt", "watch", "failures", "restarts", "lost_steps", "probe",
    }  # fmt: skip
    # A random model never closes its answer: the watch says that the format reward tells nothing apart.
    assert summary["watch"]["rewards/format_no_spread"]["worst"] == 1.0
    assert (summary["stage"], summary["status"], summary["error"]) == ("rl", "completed", None)
    assert (summary["steps"], summary["skipped_steps"], summary["policy_version"]) == (3, 0, 3)
    assert summary["active_rewards"] == ["length", "format"]
    assert_balanced(summary["groups"])
    # 3 steps of 2 groups, and none started that no step would train on.
    assert summary["groups"] == {"admitted": 6, "trained": 6, "dropped": {}, "in_flight": 0}
    assert 0 < summary["tokens"]["trained"] <= summary["tokens"]["generated"]
    assert set(summary["eval"]["before"]) == set(summary["eval"]["after"]) == set(summary["eval"]["difference"])
    for key in ("length", "format", "total"):
        interval = summary["eval"]["difference"][key]
        assert interval["low"] <= interval["mean"] <= interval["high"]


def test_metrics_count_up_and_are_all_explained(smoke: SmokeRun):
    rows = read_lines(smoke.folder / "metrics.jsonl")
    assert [(r["step"], r["policy_version"], r["attempt"]) for r in rows] == [(1, 1, 1), (2, 2, 1), (3, 3, 1)]
    for row in rows:
        assert undocumented(row) == set()
        assert row["groups/admitted"] == row["groups/trained"] + row["groups/dropped"] + row["groups/in_flight"]
        assert row["staleness/max"] <= 1
        assert row["rewards/failures"] == 0
        # The pool really scored: a random model's scores differ within a group.
        assert row["rewards/writing_std"] > 0
    # Engine and learner agree about what the initial weights sampled (seen: 0.0006 nats a token, bf16 in both).
    assert rows[0]["staleness/max"] == 0
    assert rows[0]["train/mismatch"] < 0.005


def test_samples_say_what_was_written_and_by_which_weights(smoke: SmokeRun):
    rows = read_lines(smoke.folder / "samples.jsonl")
    fields = {
        "step", "split", "prompt_id", "prompt_index", "language", "length_range", "group_id", "sample_index", "prompt",
        "completion", "num_words", "num_tokens", "well_formed", "rewards", "measures", "advantage",
        "policy_version_min", "policy_version_max", "finish_reason", "attempt",
    }  # fmt: skip
    assert all(set(r) == fields for r in rows)
    by_split = {split: [r for r in rows if r["split"] == split] for split in ("train", "eval_before", "eval_after")}
    assert {k: len(v) for k, v in by_split.items()} == {"train": 24, "eval_before": 8, "eval_after": 8}
    assert {(r["group_id"], r["sample_index"]) for r in by_split["train"]} == {
        (g, i) for g in {r["group_id"] for r in by_split["train"]} for i in range(4)
    }
    assert all(r["advantage"] is not None for r in by_split["train"])
    assert {r["policy_version_min"] for r in by_split["eval_before"]} == {0}
    assert {r["policy_version_min"] for r in by_split["eval_after"]} == {3}
    assert all(set(r["rewards"]) == {"length", "writing", "format"} for r in rows)


def test_checkpoints_carry_their_marker(smoke: SmokeRun):
    assert complete_checkpoints(smoke.folder) == [2, 3]
    assert sorted(p.name for p in (smoke.folder / "checkpoints").iterdir()) == ["step_000002", "step_000003"]
    state = read_json(smoke.folder / "checkpoints" / "step_000003" / "loop.json")
    assert (state["progress"]["step"], state["progress"]["policy_version"]) == (3, 3)


def test_the_export_is_the_last_checkpoint_and_loads(smoke: SmokeRun, models_dir: Path, tmp_path: Path):
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dcp_to_torch_save(smoke.folder / "checkpoints" / "step_000003" / "shards", tmp_path / "whole.pt")
    saved = torch.load(tmp_path / "whole.pt", weights_only=False)["model"]
    saved = {name.removeprefix("lm."): tensor for name, tensor in saved.items()}
    exported = AutoModelForCausalLM.from_pretrained(smoke.folder / "export", dtype="auto")
    initial = dict(AutoModelForCausalLM.from_pretrained(models_dir / "tiny-random", dtype="auto").named_parameters())
    names = {name for name, _ in exported.named_parameters()}
    assert names <= set(saved)
    for name, parameter in exported.named_parameters():
        assert saved[name].dtype == torch.float32
        assert torch.equal(parameter, saved[name].to(torch.bfloat16)), name
        assert not torch.equal(parameter, initial[name]), f"{name} never moved"
    tokenizer = AutoTokenizer.from_pretrained(smoke.folder / "export")
    assert tokenizer.chat_template is not None
    assert len(tokenizer) == exported.config.vocab_size


def test_a_secret_of_the_environment_appears_nowhere(smoke: SmokeRun):
    (line,) = smoke.done.lines("starting engines and learners (Ray's logs: ")
    logs = Path(line.partition("Ray's logs: ")[2].rstrip(")"))
    assert logs.is_dir()
    places = [p for folder in (smoke.folder, logs) for p in folder.rglob("*") if p.is_file()]
    assert len(places) > 20
    found = [str(p) for p in places for c in CANARIES.values() if c.encode() in p.read_bytes()]
    assert found == []
    assert not any(canary in smoke.done.output for canary in CANARIES.values())


def test_nothing_is_left_lying_about(smoke: SmokeRun):
    assert smoke.new_staged == set()
    assert smoke.new_in_repository == set()
    assert not (REPO_ROOT / "outputs").exists()
