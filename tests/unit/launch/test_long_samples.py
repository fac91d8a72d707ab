"""What long samples are refused for before a model is loaded, and what a query-key pair costs."""

import json
import shutil
from pathlib import Path

import pytest

from launch.attention_cost import attention_cost, attention_cost_of
from launch.compose import compose
from launch.preflight import preflight
from launch.preflight_sequence import check_long_samples
from launch.shapes import shape_of
from lwz_ray.config import Config
from lwz_ray.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a copy of the tiny model, which has 4 attention heads, and a prompt file."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(tiny_model_dir, tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Write about 800 words."}\n')
    return tmp_path


def config(folder: Path, *argv: str) -> Config:
    data = [f"{where}.path={folder}/prompts.jsonl" for where in ("data", "eval")]
    return compose([f"run.dir={folder}/runs", f"model.path={folder}/policy", *data, "eval.num_prompts=1", *argv])


def edit(folder: Path, **values: object) -> None:
    file = folder / "policy" / "config.json"
    found = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def test_ranks_that_share_a_row_must_divide_the_heads(folder: Path) -> None:
    check_long_samples(config(folder, "learners.ranks=12", "learners.sequence_parallel=4"))
    with pytest.raises(UserError) as caught:
        preflight(config(folder, "learners.ranks=12", "learners.sequence_parallel=3", "rewards.writing.path=null"))
    assert str(caught.value) == (
        f"learners.sequence_parallel=3 must divide the 4 attention heads of model.path='{folder}/policy'; with "
        "learners.ranks=12 use one of 1, 2, 4"
    )


def test_a_model_that_does_not_say_its_heads(folder: Path) -> None:
    edit(folder, num_attention_heads=None)
    with pytest.raises(UserError, match=r"needs num_attention_heads in the config\.json of model\.path=.*says null"):
        check_long_samples(config(folder, "learners.ranks=2", "learners.sequence_parallel=2"))
    check_long_samples(config(folder, "learners.ranks=2"))


GPUS = ("learners.device=cuda", "learners.num_gpus=1", "actors.num_gpus=1")


def test_ligers_kernels_need_its_package(folder: Path) -> None:
    try:
        import liger_kernel  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"liger-kernel is not installed; install `lwz_ray\[liger\]`"):
            check_long_samples(config(folder, "learners.liger=true", *GPUS))
    else:
        check_long_samples(config(folder, "learners.liger=true", *GPUS))
    check_long_samples(config(folder, "learners.liger=true", "dry_run=true", *GPUS))


def test_kernels_for_gpus_are_refused_on_cpus_and_varlen_in_float32(folder: Path) -> None:
    for word in ("learners.liger=true", "learners.attention=varlen"):
        with pytest.raises(UserError, match=f"{word} needs learners.device=cuda"):
            config(folder, word)
    config(folder, "learners.attention=varlen", *GPUS)
    with pytest.raises(UserError, match=r"learners\.attention=varlen with learners\.dtype=float32"):
        config(folder, "learners.attention=varlen", "learners.dtype=float32", *GPUS)


def test_the_cost_of_a_pair_from_the_models_shape(smol_model_dir: Path, folder: Path) -> None:
    # 30 layers of width 576: 4 x 30 x 576 for a pair; 2 x (30 x 3,540,096 + 49,152 x 576) for a token.
    shape = shape_of("model.path", str(smol_model_dir))
    assert shape.layer_parameters == 3_540_096
    assert attention_cost_of(shape) == pytest.approx(69_120 / 269_028_864)
    assert attention_cost(config(folder, "learners.attention_cost=0.004")) == 0.004
    assert attention_cost(config(folder, "learners.attention_cost=0")) == 0.0
    # The tiny model: 4 x 2 x 128 for a pair; 2 x (2 x 49,280 + 49,152 x 64) for a token.
    assert attention_cost(config(folder)) == pytest.approx(1024 / (2 * (2 * 49_280 + 3_145_728)))


def test_the_cost_of_a_pair_in_a_model_whose_weights_cannot_be_counted(folder: Path) -> None:
    edit(folder, architectures=["NovelForCausalLM"], hidden_size=100)
    assert attention_cost(config(folder)) == pytest.approx(1 / 600)
    edit(folder, hidden_size=None)
    with pytest.raises(UserError, match=r"no hidden_size, from which learners\.attention_cost=null is computed"):
        attention_cost(config(folder))
