"""Adapters alone are trained, published and checkpointed; merged, they are the base plus their product."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import AutoModelForCausalLM

from learners.fsdp import FsdpBackend
from learners.lora import add_adapters, merged_weights
from learners.trainer import Trainer
from lwz_ray.config_rooms import LoraConfig
from lwz_ray.errors import UserError
from lwz_ray.packing import split_over_ranks
from tests.learner_parts import alone_and_in_two, batch, meeting_address
from tests.lora_parts import LORA, SCALE, TARGETS, copied, lora_settings, train_adapters

IDS = torch.arange(1000, 1040)[None]
MODULES = [
    f"model.layers.{i}.{block}.{t}" for i in (0, 1)
    for block, targets in (("self_attn", TARGETS[:4]), ("mlp", TARGETS[4:])) for t in targets
]  # fmt: skip


@pytest.fixture(scope="module")
def seen(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what one rank alone and each of two ranks saw, and the export of the two."""
    return alone_and_in_two(train_adapters, tiny_model_dir, tmp_path_factory)


@pytest.fixture
def base(tiny_model_dir: Path) -> dict[str, torch.Tensor]:
    """Return the model folder's weights in float32."""
    return {name: tensor.float() for name, tensor in load_file(tiny_model_dir / "model.safetensors").items()}


def load_float32(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert list(before) == list(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_adapters_start_equal_on_every_rank_and_without_effect(seen: dict[str, Any]) -> None:
    (alone,), ranks = seen["of_1"], seen["of_2"]
    for rank in ranks:
        assert moved(alone["start"], rank["start"]) == set()
    drawn = {n: t for n, t in alone["start"].items() if "lora_A" in n}
    assert len(drawn) == 14
    assert all(t.abs().max() <= t.shape[1] ** -0.5 and t.std() > 0.4 * t.shape[1] ** -0.5 for t in drawn.values())
    assert len({tuple(t[0, :3].tolist()) for t in drawn.values()}) == 14
    assert all(not t.any() for n, t in alone["start"].items() if "lora_B" in n)


def test_another_seed_draws_another_a(tiny_model_dir: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        lm = load_float32(tiny_model_dir)
        add_adapters(lm, LORA, seed)
        found.append(dict(lm.named_parameters())[f"{MODULES[0]}.lora_A.default.weight"].detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_only_adapters_move(seen: dict[str, Any], base: dict[str, torch.Tensor]) -> None:
    for rank in (*seen["of_1"], *seen["of_2"]):
        assert moved(rank["start"], rank["after_one"]) == {f"{m}.lora_B.default.weight" for m in MODULES}
        both = {f"{m}.lora_{k}.default.weight" for m in MODULES for k in "AB"}
        assert moved(rank["start"], rank["after_two"]) == both
        frozen = {n.replace(".base_layer", ""): t for n, t in rank["after_two"].items() if "lora_" not in n}
        assert set(frozen) == set(base) - {"lm_head.weight"}
        assert all(torch.equal(tensor, base[name]) for name, tensor in frozen.items())


def test_two_ranks_are_one(seen: dict[str, Any]) -> None:
    (alone,), ranks = seen["of_1"], seen["of_2"]
    keys = [f"train/{key}" for key in ("loss", "grad_norm", "tokens")]
    for rank in ranks:
        for mine, wanted in zip(rank["results"], alone["results"], strict=True):
            np.testing.assert_allclose([mine.metrics[k] for k in keys], [wanted.metrics[k] for k in keys], rtol=1e-5)
        for name, tensor in rank["after_two"].items():
            torch.testing.assert_close(tensor, alone["after_two"][name], rtol=0, atol=1e-5)


def test_recomputed_layers_give_adapters_the_same_gradient(seen: dict[str, Any], tiny_model_dir: Path) -> None:
    wanted = lora_settings(tiny_model_dir, activation_checkpointing=False)
    trainer = Trainer(wanted, FsdpBackend(wanted, 0, 1, meeting_address()))
    metrics = trainer.train([split_over_ranks(batch(), 64, 1)[0]]).metrics
    trainer.close()
    recomputed = seen["of_1"][0]["results"][0].metrics
    assert metrics["train/grad_norm"] > 1e-3
    assert metrics["train/grad_norm"] == pytest.approx(recomputed["train/grad_norm"], rel=1e-6)


def test_a_checkpoint_holds_adapters_alone_and_is_continued_from(seen: dict[str, Any]) -> None:
    folder = seen["export"].parent / "checkpoint"
    found = FileSystemReader(folder / "shards").read_metadata().state_dict_metadata
    weights = {name.removeprefix("model.") for name in found if name.startswith("model.")}
    assert weights == {f"lm.{m}.lora_{k}.default.weight" for m in MODULES for k in "AB"}
    # float32 adapters of rank 4, and two moments of each: 2 layers x 4 x 1,216 x 4 B x 3 = 116,736 B.
    size = sum(f.stat().st_size for f in (folder / "shards").iterdir())
    assert 116_736 < size < 600_000  # with the base it would be above 12 MB
    for rank in (*seen["of_1"], *seen["of_2"]):
        assert moved(rank["after_two"], rank["again"]) == set()


def test_published_are_the_adapters_with_b_scaled(seen: dict[str, Any]) -> None:
    sender = seen["of_2"][0]
    assert list(sender["published"]) == [f"{m}.lora_{k}.weight" for m in MODULES for k in "AB"]
    assert sum(t.nbytes for t in sender["published"].values()) == 38_912
    assert {t.dtype for t in sender["published"].values()} == {torch.float32}
    for module in MODULES:
        for k, factor in (("A", 1.0), ("B", 1.5)):
            mine = sender["again"][f"{module}.lora_{k}.default.weight"]
            assert torch.equal(sender["published"][f"{module}.lora_{k}.weight"], mine * factor)


def test_the_merged_stream_is_base_plus_product(seen: dict[str, Any], base: dict[str, torch.Tensor]) -> None:
    sender, other = seen["of_2"]
    assert set(sender["merged"]) == set(base) - {"lm_head.weight"}
    assert [(n, tuple(t.shape)) for n, t in sender["merged"].items()] == sender["shapes"]
    assert moved(sender["merged"], other["merged"]) == set()
    for name, tensor in sender["merged"].items():
        module, wanted = name.removesuffix(".weight"), base[name].double()
        if module in MODULES:
            a, b = (sender["again"][f"{module}.lora_{k}.default.weight"].double() for k in "AB")
            wanted = wanted + SCALE * torch.einsum("or,ri->oi", b, a)
            assert (wanted - base[name]).abs().max() > 1e-4
        torch.testing.assert_close(tensor.double(), wanted, rtol=0, atol=1e-6)


def test_the_export_is_what_peft_merges(seen: dict[str, Any], tiny_model_dir: Path) -> None:
    peft: Any = PeftModel.from_pretrained(load_float32(tiny_model_dir), str(seen["export"] / "adapter"))
    exported = load_float32(seen["export"])
    with_adapter, alone = logits_of(peft), logits_of(load_float32(tiny_model_dir))
    assert (with_adapter - alone).abs().max() > 0.01
    torch.testing.assert_close(logits_of(exported), with_adapter, rtol=0, atol=1e-4)
    ours, theirs = exported.state_dict(), peft.merge_and_unload().state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_the_adapter_folder_says_what_it_is(seen: dict[str, Any], tiny_model_dir: Path) -> None:
    folder = seen["export"] / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert {k: config[k] for k in ("peft_type", "r", "lora_alpha", "base_model_name_or_path", "bias")} == {
        "peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": str(tiny_model_dir), "bias": "none",
    }  # fmt: skip
    assert sorted(config["target_modules"]) == sorted(TARGETS)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {f"base_model.model.{m}.lora_{k}.weight" for m in MODULES for k in "AB"}


def test_without_adapters_the_streams_are_the_weights(tiny_model_dir: Path, base: dict[str, torch.Tensor]) -> None:
    wanted = lora_settings(tiny_model_dir, lora=None)
    backend = FsdpBackend(wanted, 0, 1, meeting_address())
    merged = copied(merged_weights(backend, wanted, torch.bfloat16))
    backend.close()
    assert all(torch.equal(tensor, base[name].bfloat16()) for name, tensor in merged.items()) and len(merged) == 20


def test_a_target_that_is_not_there_is_named(tiny_model_dir: Path) -> None:
    lora = LoraConfig(rank=4, alpha=8.0, target_modules=["q_proj", "qkv"])
    with pytest.raises(UserError) as caught:
        add_adapters(load_float32(tiny_model_dir), lora, 0)
    assert str(caught.value) == (
        "lora.target_modules names 'qkv', which is no linear layer in the decoder layers of LlamaForCausalLM; "
        "there are: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )
