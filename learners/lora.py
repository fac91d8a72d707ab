"""Low-rank adapters on the policy: put into the model, published alone, or merged into what others load whole.

peft replaces each target by a layer that holds the old one: the parameters below `lm.` are then
`<module>.base_layer.weight`, `<module>.lora_A.default.weight` and `<module>.lora_B.default.weight`, in this order.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

from learners.backend import Backend
from learners.settings import LearnerSettings
from lwz_ray.config_rooms import LoraConfig
from lwz_ray.lora import B_SUFFIX, Adapter, check_targets, merge, scaling

Item = TypeVar("Item")

ADAPTER = "default"
"""peft's name for the one adapter of a model."""
BASE = ".base_layer."
IN_A_LAYER = re.compile(r"\.\d+\.")


def add_adapters(lm: torch.nn.Module, lora: LoraConfig, seed: int) -> None:
    """Put an adapter on every target and freeze all else; the model's class and the other names stay.

    As in the paper (section 4.1) A is random and B zero, so that the network starts as it was. A is drawn as torch
    draws a linear layer's weight, U(-1, 1) / sqrt(in_features), from a generator of its own: every rank draws the
    same. Both are float32, whatever the base is stored in. Raises UserError for a target that is no linear layer.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    linear = [n for n, m in lm.named_modules() if isinstance(m, torch.nn.Linear) and IN_A_LAYER.search(n)]
    check_targets(lora.target_modules, linear, type(lm).__name__)
    inject_adapter_in_model(peft_config(lora), lm)
    generator = torch.Generator().manual_seed(seed)
    for module in lm.modules():
        if isinstance(module, LoraLayer):
            factors: tuple[Any, Any] = module.lora_A[ADAPTER], module.lora_B[ADAPTER]
            a, b = factors
            drawn = torch.empty(a.weight.shape, dtype=torch.float32)
            torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            a.weight = torch.nn.Parameter(drawn)
            b.weight = torch.nn.Parameter(torch.zeros(b.weight.shape, dtype=torch.float32))


def peft_config(lora: LoraConfig, base: str | None = None) -> Any:
    """Return peft's config of such adapters; base: the model folder that they belong to."""
    from peft import LoraConfig as PeftLoraConfig

    # peft names an integer and takes any number; where it is whole, others read the file too.
    alpha: Any = int(lora.alpha) if lora.alpha.is_integer() else lora.alpha
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


def adapter_weights(backend: Backend) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (`<module>.lora_A.weight` or `<module>.lora_B.weight`, whole float32 tensor); every rank iterates."""
    for name, tensor in backend.stream_weights(torch.float32, trainable_only=True):
        yield name.replace(f".{ADAPTER}.weight", ".weight"), tensor


def published_weights(
    backend: Backend, settings: LearnerSettings, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what staged buckets carry: every weight in `dtype`, or the adapters alone.

    Adapters are small: they cross in float32, B times alpha / rank, so that the engine rounds once, after merging.
    """
    if settings.lora is None:
        yield from backend.stream_weights(dtype)
        return
    scale = scaling(settings.lora)
    for name, tensor in adapter_weights(backend):
        yield name, tensor * scale if name.endswith(B_SUFFIX) else tensor


def adapter_bytes(backend: Backend) -> int:
    """Return the bytes of all adapters as `published_weights` gives them, without a transfer."""
    return sum(4 * math.prod(shape) for name, shape in backend.weight_shapes() if f".{ADAPTER}." in name)


def merged_weights(
    backend: Backend, settings: LearnerSettings, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight under its Hugging Face name, W + alpha / rank · B A in place of an adapter and its base.

    Merged in float32 and rounded once; one module is held at a time. Every rank iterates in step.
    """
    if settings.lora is None:
        yield from backend.stream_weights(dtype)
        return
    scale = scaling(settings.lora)

    def product(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return merge(base, Adapter(a, b), scale)

    for name, tensor in _joined(backend.stream_weights(torch.float32), product):
        yield name, tensor.to(dtype)


def merged_shapes(backend: Backend) -> list[tuple[str, tuple[int, ...]]]:
    """Return (name, whole shape) in the order of `merged_weights`, without a transfer."""
    return list(_joined(backend.weight_shapes(), lambda base, _a, _b: base))


def _joined(items: Iterable[tuple[str, Item]], join: Callable[[Item, Item, Item], Item]) -> Iterator[tuple[str, Item]]:
    """Yield `join(base, a, b)` under the module's name where its B comes; all else passes, renamed."""
    held: dict[str, Item] = {}
    a_end, b_end = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"
    for name, item in items:
        if name.endswith((f"{BASE}weight", a_end)):
            held[name] = item
        elif name.endswith(b_end):
            module = name.removesuffix(b_end)
            yield f"{module}.weight", join(held.pop(f"{module}{BASE}weight"), held.pop(module + a_end), item)
        else:
            yield name.replace(BASE, "."), item  # a bias of a target keeps its value
    if held:
        raise RuntimeError(f"{len(held)} parts of adapters came without the others, the first is {min(held)}")
