"""The weights of a Hugging Face folder, in one safetensors file or several with an index; files are memory-mapped."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def weight_files(folder: str | Path) -> dict[Path, list[str]]:
    """Return the names of the weights in each file, both sorted. Raises FileNotFoundError where there are none."""
    root = Path(folder)
    index = root / INDEX
    if not index.is_file():
        with safe_open(root / SINGLE, framework="pt") as file:
            return {root / SINGLE: sorted(file.keys())}
    files: dict[Path, list[str]] = {}
    for name, shard in sorted(json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()):
        files.setdefault(root / shard, []).append(name)
    return dict(sorted(files.items()))


def read_weights(folder: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (Hugging Face name, whole tensor) as stored, one read at a time."""
    for path, names in weight_files(folder).items():
        with safe_open(path, framework="pt") as file:
            for name in names:
                yield name, file.get_tensor(name)


def weight_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name; only the files' headers are read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, names in weight_files(folder).items():
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return shapes
