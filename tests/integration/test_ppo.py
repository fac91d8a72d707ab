"""PPO end to end: policy and critic beside vLLM, a warm-up step for the critic alone, one checkpoint, a resume."""

from pathlib import Path

import pytest

from tests.integration.harness import (
    assert_balanced,
    complete_checkpoints,
    on_device,
    read_json,
    read_lines,
    succeed,
)
from tests.metric_docs import undocumented

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
CRITIC = {"loss", "clip_fraction", "value", "return", "tokens", "grad_norm", "lr", "skipped", "microbatches"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, device: str) -> Path:
    """Run two steps, and a third one from the checkpoint; return the run folder."""
    place = tmp_path_factory.mktemp("ppo")
    words = [
        "run=smoke_ppo",
        f"run.dir={place}",
        "run.name=ppo",
        f"model.path={models_dir}/tiny-random",
        "rewards.writing.path=null",
        "learners.ranks=1",
        "sampling.max_tokens=16",
        "eval.num_prompts=2",
        "tracking.wandb=false",
        *on_device(device),
    ]
    succeed([*words, "steps=2"], place / "first.txt")
    succeed([*words, "steps=3", "run.resume=auto"], place / "second.txt")
    return place / "ppo"


def test_both_attempts_complete(folder: Path) -> None:
    first, last = (read_json(folder / name) for name in ("summary.attempt-1.json", "summary.json"))
    assert [(s["status"], s["steps"], s["policy_version"]) for s in (first, last)] == [
        ("completed", 2, 1),
        ("completed", 3, 2),
    ]
    assert read_json(folder / "manifest.json")["resumed_from_step"] == 2
    assert_balanced(last["groups"])
    assert (last["groups"]["trained"], last["skipped_steps"]) == (6, 0)


def test_the_policy_waits_while_the_critic_warms_up(folder: Path) -> None:
    rows = read_lines(folder / "metrics.jsonl")
    assert [(r["step"], r["policy_version"], r["attempt"]) for r in rows] == [(1, 0, 1), (2, 1, 1), (3, 2, 2)]
    assert ["train/loss" in r for r in rows] == [False, True, True]
    assert [r["staleness/max"] for r in rows[:1]] == [0]
    versions = {r["policy_version_max"] for r in read_lines(folder / "samples.jsonl") if r["step"] == 1}
    assert versions == {0}


def test_every_step_trains_the_critic(folder: Path) -> None:
    for row in read_lines(folder / "metrics.jsonl"):
        assert undocumented(row) == set()
        found = {key.removeprefix("critic/") for key in row if key.startswith("critic/")}
        assert found - {"explained_variance"} == CRITIC
        assert (row["critic/skipped"], row["critic/lr"]) == (0, 1e-3)
        # Two minibatches, a row each, on one rank.
        assert (row["critic/microbatches"], row["time/critic_s"] > 0) == (2, True)
        assert row["critic/grad_norm"] > 0
        # With gamma and lambda 1 a token's return is its sample's reward; texts of a random model are all cut at 16.
        assert row["critic/tokens"] == row["rollout/tokens"] == 2 * 4 * 16
        assert row["critic/return"] == pytest.approx(row["rewards/length"] + row["rewards/format"], abs=1e-6)
        assert row["critic/return"] > 0.05


def test_one_checkpoint_holds_both(folder: Path) -> None:
    assert complete_checkpoints(folder) == [2, 3]
    newest = folder / "checkpoints" / "step_000003"
    # Two minibatches a step: three steps of the critic, two of the policy.
    assert read_json(newest / "critic" / "trainer.json") == {"optimizer_steps": 6, "skipped_steps": 0}
    assert read_json(newest / "trainer.json") == {"optimizer_steps": 4, "skipped_steps": 0}
    assert read_json(folder / "export" / "config.json")["architectures"] == ["LlamaForCausalLM"]


def test_the_critic_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    """Its head was 0 and moves by about the rate a step: after six it is further than any four could bring it."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    heads = []
    for step in (2, 3):
        dcp_to_torch_save(folder / "checkpoints" / f"step_{step:06d}" / "critic" / "shards", tmp_path / "whole.pt")
        state = torch.load(tmp_path / "whole.pt", weights_only=False)["model"]
        heads.append(next(tensor for name, tensor in state.items() if name.endswith("score.weight")))
    assert heads[0].abs().max().item() > 1e-3
    assert (heads[1] - heads[0]).abs().max().item() > 1e-4
    # From 0 again, two steps of AdamW could not reach beyond twice the rate.
    assert heads[1].abs().max().item() > 2.5e-3
