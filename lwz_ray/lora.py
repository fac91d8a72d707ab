"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): a linear layer computes W x + (alpha / rank) B A x, W frozen.

On the wire an adapter is two tensors, `<module>.lora_A.weight` and `<module>.lora_B.weight`, and B carries the factor:
who receives them merges W + B A and needs to know neither alpha nor rank.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from lwz_ray.config_rooms import LoraConfig
from lwz_ray.errors import UserError

A_SUFFIX = ".lora_A.weight"
B_SUFFIX = ".lora_B.weight"
WEIGHT = ".weight"


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """The two factors of one linear layer: a [rank, in_features] and b [out_features, rank]."""

    a: torch.Tensor
    b: torch.Tensor


def scaling(lora: LoraConfig) -> float:
    """Return alpha / rank."""
    return lora.alpha / lora.rank


def is_adapter(name: str) -> bool:
    """Tell an adapter's tensor on the wire from a whole weight."""
    return name.endswith((A_SUFFIX, B_SUFFIX))


def merge(base: torch.Tensor, adapter: Adapter, scale: float = 1.0) -> torch.Tensor:
    """Return base + scale · B A, float32 [out_features, in_features], on the base's device."""
    a, b = (factor.to(base.device, torch.float32) for factor in (adapter.a, adapter.b))
    return base.float() + scale * (b @ a)


def pair_up(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Adapter]:
    """Return the adapters by module. Raises ValueError where a tensor is no adapter's, or half of one is missing."""
    halves: dict[str, dict[str, torch.Tensor]] = {A_SUFFIX: {}, B_SUFFIX: {}}
    for name, tensor in tensors:
        if not is_adapter(name):
            raise ValueError(f"{name} is a whole weight among adapters: an update holds one kind or the other")
        suffix = A_SUFFIX if name.endswith(A_SUFFIX) else B_SUFFIX
        halves[suffix][name.removesuffix(suffix)] = tensor
    first, second = halves[A_SUFFIX], halves[B_SUFFIX]
    alone = sorted(first.keys() ^ second.keys())
    if alone:
        raise ValueError(f"{len(alone)} adapters are half there, the first is {alone[0]}")
    return {module: Adapter(a, second[module]) for module, a in first.items()}


def merged(
    base: Iterable[tuple[str, torch.Tensor]], adapters: dict[str, Adapter], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every base weight, those under an adapter merged and rounded once, to `dtype`; one alive at a time.

    Raises ValueError at the end where an adapter found no weight of its name.
    """
    waiting = set(adapters)
    for name, tensor in base:
        module = name.removesuffix(WEIGHT)
        if name.endswith(WEIGHT) and module in adapters:
            waiting.discard(module)
            tensor = merge(tensor, adapters[module]).to(dtype)
        yield name, tensor
    if waiting:
        raise ValueError(f"{len(waiting)} adapters have no weight in the model folder, the first is {min(waiting)}")


def check_targets(targets: Iterable[str], linear: Iterable[str], where: str) -> None:
    """Raise UserError unless each target is, or ends, the name of a linear layer inside the decoder layers.

    linear: names such as `model.layers.0.self_attn.q_proj`; where: what they were found in, for the error.
    """
    names = list(linear)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            there = ", ".join(sorted({name.rpartition(".")[2] for name in names})) or "none"
            raise UserError(
                f"lora.target_modules names {target!r}, which is no linear layer in the decoder layers of {where}; "
                f"there are: {there}"
            )
