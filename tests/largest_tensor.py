"""A watch on every tensor that a computation makes, its backward included."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Keeps the greatest number of elements that any operation gave, and what memory was asked for by shape.

    Views of what exists already count for `elements` too; `made` counts results with storage of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.shape: tuple[int, ...] = ()
        self.made: Counter[tuple[tuple[int, ...], torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in _tensors([args, kwargs or {}])}
        out = func(*args, **(kwargs or {}))
        for item in _tensors(out):
            if item.numel() > self.elements:
                self.elements, self.shape = item.numel(), tuple(item.shape)
            if item.untyped_storage().data_ptr() not in given:
                self.made[tuple(item.shape), item.dtype] += 1
        return out


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []
