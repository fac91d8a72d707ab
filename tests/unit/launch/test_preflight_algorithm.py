"""What a critic can be refused for before a model is loaded, and what it adds to plan and settings."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.compose import compose
from launch.learner_room import critic_settings, learner_settings
from launch.plan import bundles, estimates, plan_text
from launch.preflight import preflight
from lwz_ray.config import Config
from lwz_ray.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, tiny_classifier_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a copy of the tiny classifier, to start the critic from."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(tiny_classifier_dir, tmp_path / "critic")
    return tmp_path


def config_of(folder: Path, models: Path, *argv: str) -> Config:
    words = ["run=smoke_ppo", f"run.dir={folder}/runs", f"model.path={models}", "rewards.writing.path=null"]
    return compose([*words, f"critic.path={folder}/critic", *argv])


def error_of(folder: Path, models: Path, *argv: str) -> str:
    with pytest.raises(UserError) as caught:
        preflight(config_of(folder, models, *argv))
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "FOLDER").replace(str(models), "POLICY")


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_reward_model_and_a_language_model_pass(folder: Path, tiny_model_dir: Path):
    preflight(config_of(folder, tiny_model_dir))
    preflight(config_of(folder, tiny_model_dir, f"critic.path={tiny_model_dir}"))
    preflight(config_of(folder, tiny_model_dir, "critic.path=null"))


def test_what_is_not_there(folder: Path, tiny_model_dir: Path):
    assert error_of(folder, tiny_model_dir, f"critic.path={folder}/nope").startswith(
        "critic.path='FOLDER/nope': no such folder; name a Hugging Face folder"
    )
    preflight(config_of(folder, tiny_model_dir, f"critic.path={folder}/nope", "algorithm=grpo"))
    os.rename(folder / "critic" / "model.safetensors", folder / "critic" / "pytorch_model.bin")
    assert "critic.path='FOLDER/critic': holds only pytorch_model.bin, a pickle" in error_of(folder, tiny_model_dir)


def test_more_than_one_output(folder: Path, tiny_model_dir: Path):
    edit_json(folder / "critic" / "config.json", id2label={"0": "bad", "1": "good"})
    assert error_of(folder, tiny_model_dir).startswith(
        "critic.path='FOLDER/critic': LlamaForSequenceClassification with 2 outputs (id2label)"
    )


def test_positions(folder: Path, tiny_model_dir: Path):
    edit_json(folder / "critic" / "config.json", max_position_embeddings=256)
    assert error_of(folder, tiny_model_dir) == (
        "model.max_length_tokens=512 exceeds the 256 positions of critic.path='FOLDER/critic': lower it"
    )


def test_another_vocabulary(folder: Path, tiny_model_dir: Path):
    both = "critic.path='FOLDER/critic' and model.path='POLICY': "
    file = folder / "critic" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["the"], vocabulary["and"] = vocabulary["and"], vocabulary["the"]
    file.write_text(json.dumps(tokenizer))
    assert error_of(folder, tiny_model_dir) == (
        f"{both}their tokenizers give other ids to 2 of 49152 tokens, such as 'and'; use a model of the same family, "
        "or critic.path=null"
    )
    edit_json(folder / "critic" / "config.json", vocab_size=49_000)
    assert error_of(folder, tiny_model_dir) == (
        f"{both}the critic's vocab_size=49000 is below the policy's 49152, and it reads the policy's tokens; use a "
        "model of the same family, or critic.path=null"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["critic.warmup_steps=3"], "critic.warmup_steps=3 with steps=3: the policy would never be trained"),
        (["learners.sequence_parallel=2"], "critic.ranks=1 is no multiple of learners.sequence_parallel=2"),
        (["learners.device=cuda", "actors.num_gpus=1"], "learners.device=cuda with critic.num_gpus=0"),
    ],
)
def test_numbers_that_cannot_go_together(folder: Path, tiny_model_dir: Path, words: list[str], message: str):
    assert error_of(folder, tiny_model_dir, *words).startswith(message)
    config_of(folder, tiny_model_dir, *words, "algorithm=grpo")


def test_the_plan_holds_the_critic(folder: Path, tiny_model_dir: Path):
    config = config_of(folder, tiny_model_dir, "critic.ranks=2")
    assert bundles(config)["critic"] == [{"CPU": 0.2}, {"CPU": 0.2}]
    assert "critic" not in bundles(config_of(folder, tiny_model_dir, "algorithm=grpo"))
    text = plan_text(config)
    assert "  critic      2 x {CPU: 0.2} = 0.4 CPUs, 0 GPUs\n" in text
    assert f"  critic from {folder}/critic: trained alone for the first 1 of 3 steps\n" in text
    estimate = estimates(config)[-1]
    terms = {term.name: term.num_bytes for term in estimate.terms}
    # 3,244,352 of the decoder without its tied output matrix, and the head's 64.
    assert (estimate.title, estimate.num_processes, terms["Adam moments"]) == ("critic rank", 2, 3_244_416 * 8 / 2)
    assert not {"logits of a chunk", "weight buckets"} & set(terms)


def test_settings_are_the_learners_but_for_what_is_its_own(folder: Path, tiny_model_dir: Path):
    words = ["critic.value_clip=0.3", "critic.lr=0.002", "lora=r16", "optimizer.max_grad_norm=0.5"]
    config = config_of(folder, tiny_model_dir, *words)
    critic, policy = critic_settings(config, ("/tmp",)), learner_settings(config, ("/tmp",), 1)
    differing = {k: getattr(critic, k) for k in critic.__slots__ if getattr(critic, k) != getattr(policy, k)}
    assert differing == {
        "objective": "critic",
        "model_path": f"{folder}/critic",
        "lr": 0.002,
        "value_clip": 0.3,
        "lora": None,
        "staging_bytes": 0,
    }
    assert critic.max_grad_norm == 0.5
    assert critic_settings(config_of(folder, tiny_model_dir, "critic.path=null"), ()).model_path == str(tiny_model_dir)
