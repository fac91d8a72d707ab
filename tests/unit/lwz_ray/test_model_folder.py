"""A model folder's weights are read alike from one file and from several."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lwz_ray.model_folder import read_weights, weight_files, weight_shapes

WEIGHTS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1.5]).bfloat16(), "c": torch.ones(4, 1)}


@pytest.fixture(params=["one", "several"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a folder with the weights, beside a file that is not the model's."""
    save_file({"stray": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    if request.param == "one":
        save_file(WEIGHTS, tmp_path / "model.safetensors")
        return tmp_path
    shards = {"b": "model-2.safetensors", "a": "model-1.safetensors", "c": "model-2.safetensors"}
    for shard in set(shards.values()):
        save_file({name: WEIGHTS[name] for name in WEIGHTS if shards[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return tmp_path


def test_every_weight_is_read_as_stored(folder: Path) -> None:
    found = list(read_weights(folder))
    assert [name for name, _ in found] == ["a", "b", "c"]
    for name, tensor in found:
        assert tensor.dtype == WEIGHTS[name].dtype and torch.equal(tensor, WEIGHTS[name])


def test_shapes_come_from_headers(folder: Path) -> None:
    assert weight_shapes(folder) == {"a": (1,), "b": (2, 3), "c": (4, 1)}


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        weight_files(tmp_path)
