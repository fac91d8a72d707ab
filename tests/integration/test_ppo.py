"""PPO end to end: policy and critic beside vLLM, a warm-up step for the critic alone, one checkpoint of both.

A learner's process is killed in the middle, and both go on from the newest checkpoint.
"""

import shutil
from pathlib import Path

import pytest

from tests.integration.harness import (
    assert_balanced,
    complete_checkpoints,
    learners_of,
    on_device,
    read_json,
    read_lines,
    start,
    succeed,
)
from tests.metric_docs import undocumented

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
STEPS = 7
CRITIC = {"loss", "clip_fraction", "value", "return", "tokens", "grad_norm", "lr", "skipped", "microbatches"}


def words_of(place: Path, models_dir: Path, device: str) -> list[str]:
    return [
        "run=smoke_ppo",
        f"run.dir={place}",
        "run.name=ppo",
        f"model.path={models_dir}/tiny-random",
        "rewards.writing.path=null",
        "learners.ranks=1",
        "run.checkpoint_every_steps=1",
        "run.keep_checkpoints=10",
        "failures.heartbeat_every_s=1",
        "sampling.max_tokens=16",
        "eval.num_prompts=2",
        "tracking.wandb=false",
        *on_device(device),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, device: str) -> Path:
    """Run some steps, and the others after the loss of a learner; return the run folder."""
    place = tmp_path_factory.mktemp("ppo")
    found = place / "ppo"
    words = [*words_of(place, models_dir, device), f"steps={STEPS}"]
    child = start(words, place / "output.txt")
    # Six optimizer steps of the critic: enough to tell a head that goes on from one that starts anew.
    child.wait_until(lambda: complete_checkpoints(found)[-1:] >= [3], 150, "the third checkpoint")
    learners_of(child)[-1].kill()
    done = child.finish(150)
    assert done.returncode == 0, done.output[-4000:]
    return found


def resumed(folder: Path) -> int:
    """Return the step whose checkpoint the second attempt began with."""
    return read_json(folder / "manifest.json")["resumed_from_step"]


def test_the_second_attempt_completes(folder: Path) -> None:
    summary = read_json(folder / "summary.json")
    assert (summary["status"], summary["steps"], summary["policy_version"]) == ("completed", STEPS, STEPS - 1)
    assert (summary["attempt"], summary["restarts"]) == (2, 1)
    assert 3 <= resumed(folder) < STEPS
    assert_balanced(summary["groups"])
    assert (summary["groups"]["trained"], summary["skipped_steps"]) == (2 * STEPS, 0)


def test_the_policy_waits_while_the_critic_warms_up(folder: Path) -> None:
    rows = [r for r in read_lines(folder / "metrics.jsonl") if not r.get("superseded")]
    assert [(r["step"], r["policy_version"]) for r in rows] == [(i, i - 1) for i in range(1, STEPS + 1)]
    assert [r["attempt"] for r in rows] == [1] * resumed(folder) + [2] * (STEPS - resumed(folder))
    assert ["train/loss" in r for r in rows] == [False] + [True] * (STEPS - 1)
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
    assert complete_checkpoints(folder) == list(range(1, STEPS + 1))
    newest = folder / "checkpoints" / f"step_{STEPS:06d}"
    # Two minibatches a step: seven steps of the critic, six of the policy.
    assert read_json(newest / "critic" / "trainer.json") == {"optimizer_steps": 14, "skipped_steps": 0}
    assert read_json(newest / "trainer.json") == {"optimizer_steps": 12, "skipped_steps": 0}
    assert read_json(folder / "export" / "config.json")["architectures"] == ["LlamaForCausalLM"]


def test_the_critic_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    """Its head was 0 and moves by about the rate a step: one step after the loss it is further than from 0 again."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    heads = []
    for step in (resumed(folder), resumed(folder) + 1):
        dcp_to_torch_save(folder / "checkpoints" / f"step_{step:06d}" / "critic" / "shards", tmp_path / "whole.pt")
        state = torch.load(tmp_path / "whole.pt", weights_only=False)["model"]
        heads.append(next(tensor for name, tensor in state.items() if name.endswith("score.weight")))
    assert heads[0].abs().max().item() > 1e-3
    assert (heads[1] - heads[0]).abs().max().item() > 1e-4
    # From 0 again, the two optimizer steps of one step could not reach beyond twice the rate.
    assert heads[1].abs().max().item() > 2.5e-3


def test_a_later_start_with_more_steps_goes_on(folder: Path, models_dir: Path, tmp_path: Path, device: str) -> None:
    found = shutil.copytree(folder, tmp_path / "ppo")
    words = [*words_of(tmp_path, models_dir, device), f"steps={STEPS + 1}", "run.resume=auto"]
    succeed(words, tmp_path / "output.txt")
    summary = read_json(found / "summary.json")
    assert (summary["status"], summary["steps"], summary["policy_version"]) == ("completed", STEPS + 1, STEPS)
    assert (resumed(found), summary["attempt"]) == (STEPS, 3)
    newest = found / "checkpoints" / f"step_{STEPS + 1:06d}"
    assert read_json(newest / "critic" / "trainer.json") == {"optimizer_steps": 16, "skipped_steps": 0}
    assert_balanced(summary["groups"])
