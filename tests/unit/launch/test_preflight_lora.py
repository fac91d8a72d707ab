"""What `lora` is refused for before a model is loaded."""

from pathlib import Path

import pytest

from launch.compose import compose
from launch.preflight_lora import check_lora_targets
from lwz_ray.config import Config
from lwz_ray.errors import UserError


@pytest.fixture
def words(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return [f"run.dir={tmp_path}", f"model.path={tiny_model_dir}"]


def composed(words: list[str], *more: str) -> Config:
    return compose([*words, *more])


def test_the_preset_fits_a_llama(words: list[str]) -> None:
    config = composed(words, "lora=r16")
    assert (config.lora.rank, config.lora.alpha, len(config.lora.target_modules)) == (16, 32.0, 7)
    check_lora_targets(config)


@pytest.mark.parametrize("target", ["query_key_value", "embed_tokens", "input_layernorm", "self_attn"])
def test_a_target_that_is_no_linear_layer_is_named(words: list[str], tiny_model_dir: Path, target: str) -> None:
    with pytest.raises(UserError) as caught:
        check_lora_targets(composed(words, "lora=r16", f"lora.target_modules=[q_proj,{target}]"))
    assert str(caught.value) == (
        f"lora.target_modules names '{target}', which is no linear layer in the decoder layers of "
        f"model.path='{tiny_model_dir}'; there are: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_a_reward_model_is_not_trained_through_adapters(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"lora\.rank=16 with stage=train_rm: .*; use lora=none"):
        composed(words, "lora=r16", "stage=train_rm")
