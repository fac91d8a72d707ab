"""The disk that a run needs: literal sums, and a refusal that shows them."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.compose import compose
from launch.memory import Term
from launch.preflight_disk import (
    adapter_parameters,
    check_disk,
    check_staging,
    disk_lines,
    disk_terms,
    num_parameters,
    staging_term,
)
from lwz_ray.config import Config
from lwz_ray.errors import UserError

TINY = 3_244_352
"""Parameters of the tiny random model: 49,152 x 64 for the tied embedding, two layers, one norm."""


def config_of(model: Path, folder: Path, *words: str) -> Config:
    return compose(["run=smoke_cpu", f"model.path={model}", f"run.dir={folder}", *words])


def sums(config: Config) -> dict[str, float]:
    return {t.name: t.num_bytes for t in disk_terms(config)}


def test_a_broken_weight_file_is_named(tiny_model_dir: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    for content in (b"", b"hello, I am no weight file", b"\x02\0\0\0\0\0\0\0[]"):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=f"{folder}/model.safetensors: no safetensors file .*; copy or save it"):
            num_parameters("model.path", str(folder))


def test_parameters_are_counted_from_the_files(tiny_model_dir: Path):
    assert num_parameters("model.path", str(tiny_model_dir)) == TINY


@pytest.mark.parametrize(
    ("words", "checkpoints"),
    [
        (("run.keep_checkpoints=2", "steps=40", "run.checkpoint_every_steps=10"), TINY * 12 * 3),
        (("run.keep_checkpoints=2", "steps=20", "run.checkpoint_every_steps=10"), TINY * 12 * 2),
        (("run.keep_checkpoints=2", "steps=21", "run.checkpoint_every_steps=10"), TINY * 12 * 3),
        (("run.keep_best=3", "run.best_metric=rewards/total", "steps=90", "run.keep_checkpoints=1"), TINY * 12 * 5),
        (("learners=deepspeed", "learners.dtype=bfloat16", "steps=1"), TINY * 14),
        (("steps=9", "run.checkpoint_every_steps=9", "algorithm=ppo"), TINY * 24),
    ],
)
def test_checkpoints_are_counted_by_number_and_size(
    tiny_model_dir: Path, tmp_path: Path, words: tuple[str, ...], checkpoints: int
):
    found = sums(config_of(tiny_model_dir, tmp_path, *words))
    assert found["checkpoints"] == checkpoints
    assert found["export"] == TINY * 2


def test_only_adapters_are_counted_with_lora(tiny_model_dir: Path, tmp_path: Path):
    words = ("lora=r16", "lora.rank=4", "lora.target_modules=[q_proj,down_proj]", "steps=1")
    found = sums(config_of(tiny_model_dir, tmp_path, *words))
    # Two layers: queries 64 -> 128, down 128 -> 64.
    assert found["checkpoints"] == 2 * 4 * ((64 + 128) + (128 + 64)) * 12
    assert found["export"] == TINY * 2
    shapes = {"l.0.q_proj.weight": [8, 6], "l.0.q_proj.bias": [8], "l.0.xq_proj.weight": [8, 6]}
    assert adapter_parameters(shapes, 2, ["q_proj"]) == 28


def test_staged_weights_count_where_they_share_the_disk(tiny_model_dir: Path, tmp_path: Path):
    words = ("actors.dtype=bfloat16", f"weights.staging_dir={tmp_path}")
    assert sums(config_of(tiny_model_dir, tmp_path, *words))["staged weights"] == TINY * 2 * 2


@pytest.mark.parametrize(
    ("words", "num_bytes", "formula"),
    [
        (("actors.dtype=bfloat16",), 40, "10 x 2 B x (2 versions) in weights.staging_dir"),
        (("actors.dtype=float32",), 80, "10 x 4 B x (2 versions) in weights.staging_dir"),
        (("lora=r16",), 80, "10 x 4 B x (2 versions) in weights.staging_dir"),  # adapters cross in float32
        (
            ("weights.transport=object_store", "actors.replicas=3", "actors.dtype=bfloat16"),
            100,
            "10 x 2 B x (2 versions and a copy for each of actors.replicas=3) in weights.staging_dir",
        ),
    ],
)
def test_two_versions_are_staged(
    tiny_model_dir: Path, tmp_path: Path, words: tuple[str, ...], num_bytes: int, formula: str
):
    assert staging_term(config_of(tiny_model_dir, tmp_path, *words), 10) == Term("staged weights", formula, num_bytes)


def test_staging_without_room_is_refused(tiny_model_dir: Path, tmp_path: Path):
    words = (f"weights.staging_dir={tmp_path}", "actors.dtype=bfloat16", "weights.transport=object_store")
    config = config_of(tiny_model_dir, tmp_path, *words)
    check_staging(config)
    tree: dict[str, Any] = config.model_dump()
    wide = Config.model_validate({**tree, "actors": {**tree["actors"], "replicas": 10**9}})
    # 3,244,352 x 2 B x (2 + 10^9) = 6,043,076.53 GiB
    with pytest.raises(UserError, match=r"staged weights need 6043076\.53 GiB \(3,244,352 x 2 B"):
        check_staging(wide)


def test_a_run_that_does_not_fit_is_refused_with_the_arithmetic(tiny_model_dir: Path, tmp_path: Path):
    fits = config_of(tiny_model_dir, tmp_path, "run.keep_checkpoints=2", "steps=40")
    check_disk(fits)
    many = {"keep_checkpoints": 10**9, "checkpoint_every_steps": 1}
    tree: dict[str, Any] = fits.model_dump()
    wide = Config.model_validate({**tree, "steps": 10**9, "run": {**tree["run"], **many}})
    with pytest.raises(UserError) as caught:
        check_disk(wide)
    text = str(caught.value)
    # 3,244,352 x 12 B x 10^9 + 3,244,352 x 2 B = 36,258,459.10 GiB
    assert text.startswith(f"run.dir={tmp_path}: the run needs 36258459.10 GiB of disk and ")
    assert re.search(r"GiB of disk and \d+\.\d\d GiB are free: checkpoints ", text)
    assert "checkpoints (3,244,352 trained parameters x 12 B) x 1000000000 (run.checkpoint_every_steps=1 in" in text
    assert text.endswith("make room, lower run.keep_checkpoints or run.keep_best, or name another run.dir")


def test_a_stage_without_checkpoints_needs_none(tiny_model_dir: Path, tmp_path: Path):
    config = config_of(tiny_model_dir, tmp_path)
    assert disk_lines(config)[0].startswith(f"disk under {tmp_path} ")
    tree = config.model_dump()
    curate = Config.model_validate({**tree, "stage": "curate", "recipe": "degradations"})
    assert disk_lines(curate) == []
    check_disk(curate)
