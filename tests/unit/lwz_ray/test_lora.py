"""Adapters on the wire: paired, merged into their weights, and nothing half there is merged."""

import re

import pytest
import torch

from lwz_ray.config_rooms import LoraConfig
from lwz_ray.errors import UserError
from lwz_ray.lora import Adapter, check_targets, is_adapter, merge, merged, pair_up, scaling

A = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])  # rank 2, from 3 features
B = torch.tensor([[1.0, 2.0], [0.5, 0.0]])  # to 2
PRODUCT = [[1.0, 2.0, 0.0], [0.5, 0.0, 1.0]]


def test_the_factor_is_alpha_over_rank() -> None:
    assert scaling(LoraConfig(rank=16, alpha=32.0, target_modules=["q_proj"])) == 2.0


def test_merge_adds_the_scaled_product() -> None:
    base = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    assert merge(base, Adapter(A, B)).tolist() == [[2.0, 3.0, 1.0], [2.5, 2.0, 3.0]]
    assert merge(base, Adapter(A, B), scale=2.0).tolist() == [[3.0, 5.0, 1.0], [3.0, 2.0, 4.0]]
    assert merge(torch.zeros(2, 3), Adapter(A, B)).tolist() == PRODUCT


def test_merge_computes_in_float32() -> None:
    # 1 + 1/512 is no bfloat16 number.
    small = Adapter(torch.tensor([[1.0]]).bfloat16(), torch.tensor([[2.0**-9]]).bfloat16())
    out = merge(torch.tensor([[1.0]]).bfloat16(), small)
    assert (out.dtype, out.item()) == (torch.float32, 1.001953125)


def test_halves_are_paired_in_any_order() -> None:
    wire = [("m.q.lora_B.weight", B), ("m.k.lora_A.weight", A), ("m.q.lora_A.weight", A), ("m.k.lora_B.weight", B)]
    assert [is_adapter(name) for name, _ in wire] == [True] * 4 and not is_adapter("m.q.weight")
    adapters = pair_up(wire)
    assert set(adapters) == {"m.q", "m.k"}
    assert all(torch.equal(x.a, A) and torch.equal(x.b, B) for x in adapters.values())


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        ([("m.q.lora_A.weight", A)], "1 adapters are half there, the first is m.q"),
        ([("m.q.lora_A.weight", A), ("m.k.lora_B.weight", B)], "2 adapters are half there, the first is m.k"),
        ([("m.q.lora_A.weight", A), ("m.norm.weight", A)], "m.norm.weight is a whole weight among adapters"),
    ],
)
def test_what_is_no_whole_set_of_adapters_is_refused(wire: list[tuple[str, torch.Tensor]], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        pair_up(wire)


def test_every_base_weight_comes_and_only_those_with_an_adapter_change() -> None:
    base = {"m.q.weight": torch.ones(2, 3).bfloat16(), "m.q.bias": torch.ones(2), "m.k.weight": torch.full((2, 3), 7.0)}
    out = dict(merged(base.items(), {"m.q": Adapter(A, B)}, torch.bfloat16))
    assert list(out) == list(base)
    assert out["m.q.weight"].tolist() == [[2.0, 3.0, 1.0], [1.5, 1.0, 2.0]]
    assert out["m.q.weight"].dtype == torch.bfloat16
    assert torch.equal(out["m.q.bias"], torch.ones(2)) and torch.equal(out["m.k.weight"], base["m.k.weight"])


def test_an_adapter_without_a_weight_is_an_error() -> None:
    stream = merged([("m.q.weight", torch.ones(2, 3))], {"m.v": Adapter(A, B)}, torch.float32)
    with pytest.raises(ValueError, match=r"1 adapters have no weight in the model folder, the first is m\.v"):
        list(stream)


def test_targets_are_whole_last_parts_of_names() -> None:
    linear = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
    check_targets(["q_proj", "mlp.up_proj"], linear, "a model")
    with pytest.raises(UserError, match=r"names 'proj', .* of a model; there are: q_proj, up_proj$"):
        check_targets(["q_proj", "proj"], linear, "a model")
