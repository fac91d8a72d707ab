"""Two ranks over gloo are one learner: the same loss, gradient, weights and export as one rank."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.learner_parts import alone_and_in_two, train_stage_export


@pytest.fixture(scope="module")
def seen(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what one rank alone and each of two ranks saw, and the export of the two."""
    return alone_and_in_two(train_stage_export, tiny_model_dir, tmp_path_factory)


@pytest.mark.parametrize("step", [0, 1])
def test_loss_and_gradient_norm_are_those_of_one_rank(seen: dict[str, Any], step: int) -> None:
    (alone,), ranks = seen["of_1"], seen["of_2"]
    keys = ["loss", "grad_norm", "mismatch", "mismatch_k3", "clip_fraction", "tokens", "lr"]
    wanted = [alone["results"][step].metrics[f"train/{k}"] for k in keys]
    for rank in ranks:
        result = rank["results"][step]
        np.testing.assert_allclose([result.metrics[f"train/{k}"] for k in keys], wanted, rtol=1e-5, atol=1e-7)
        assert (result.optimizer_steps, result.skipped, result.num_trained_tokens) == (1, 0, (65, 9)[step])


def test_weights_after_two_steps_are_those_of_one_rank(seen: dict[str, Any]) -> None:
    (alone,), ranks = seen["of_1"], seen["of_2"]
    for rank in ranks:
        assert list(rank["parameters"]) == list(alone["parameters"])
        for name, tensor in rank["parameters"].items():
            # AdamW's first steps are the gradient's sign where it is far from 0: a tiny gradient may differ more.
            torch.testing.assert_close(tensor, alone["parameters"][name], rtol=0, atol=2e-3)
            assert (tensor - alone["parameters"][name]).abs().mean().item() < 1e-6


def test_the_staged_stream_is_the_parameters(seen: dict[str, Any], tiny_model_dir: Path) -> None:
    sender, other = seen["of_2"]
    assert sender["num_buckets"] > 1 and (other["num_buckets"], other["staged"]) == (0, {})
    assert list(sender["staged"]) == list(sender["parameters"])
    assert set(sender["staged"]) == set(load_file(tiny_model_dir / "model.safetensors")) - {"lm_head.weight"}
    for name, tensor in sender["staged"].items():
        assert torch.equal(tensor, sender["parameters"][name]) and torch.equal(tensor, other["parameters"][name])


def test_the_export_loads_and_gives_the_same_logits(seen: dict[str, Any], tiny_model_dir: Path) -> None:
    exported: Any = AutoModelForCausalLM.from_pretrained(seen["export"], dtype=torch.float32)
    trained: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    # An export holds bfloat16; so does this copy of the trained weights.
    state = {k: v.bfloat16().float() for k, v in seen["of_2"][0]["parameters"].items()}
    assert trained.load_state_dict(state, strict=False).unexpected_keys == []
    ids = torch.arange(1000, 1040)[None]
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, trained(ids).logits)
    assert (seen["export"] / "tokenizer.json").read_bytes() == (tiny_model_dir / "tokenizer.json").read_bytes()
