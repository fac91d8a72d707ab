"""The plan's arithmetic, against numbers worked out by hand and against real checkpoints."""

import json
import struct
from math import prod
from pathlib import Path

import pytest

from launch.compose import compose
from launch.memory import GIB, layer_activation_elements, rollout_estimate
from launch.memory_learner import learner_estimate
from launch.plan import bundles, estimates, plan_text
from launch.shapes import KNOWN, shape_of
from lwz_ray.errors import UserError


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def stored_parameters(folder: Path) -> int:
    """Count the numbers in model.safetensors from its header."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def test_published_sizes():
    assert KNOWN["Qwen/Qwen2.5-7B"].num_parameters == 7_615_616_512
    assert KNOWN["Qwen/Qwen3-4B-Base"].num_parameters == 4_022_468_096
    assert KNOWN["Qwen/Qwen2.5-14B"].num_parameters == 14_770_033_664
    assert KNOWN["Qwen/Qwen2.5-32B"].num_parameters == 32_763_876_352
    assert KNOWN["Qwen/Qwen2.5-72B"].num_parameters == 72_706_203_648


def test_counts_equal_what_checkpoints_store(smol_model_dir: Path, tiny_model_dir: Path, tiny_classifier_dir: Path):
    assert shape_of("model.path", str(smol_model_dir)).num_parameters == 134_515_008
    for folder in (smol_model_dir, tiny_model_dir, tiny_classifier_dir):
        assert shape_of("model.path", str(folder)).num_parameters == stored_parameters(folder)


def test_paper_placement():
    config = compose(["run=paper_32b"])
    rooms = bundles(config)
    assert rooms["actors"] == [{"CPU": 8.0, "GPU": 8.0}] * 4
    assert rooms["rewards"] == [{"CPU": 8.0, "GPU": 4.0}] * 2
    assert rooms["learners"] == [{"CPU": 6.0, "GPU": 1.0}] * 24
    assert "192 CPUs, 64 GPUs; the cluster has 8 nodes x 8 = 64 GPUs: fits" in plan_text(config)


def test_paper_memory():
    config = compose(["run=paper_32b"])
    engine, scorer, learner = estimates(config)
    terms = {t.name: round(t.num_bytes / GIB, 2) for t in learner.terms}
    assert terms["master weights"] == 5.09  # 32.76e9 * 4 / 24
    assert terms["Adam moments"] == 10.17
    assert terms["layer inputs"] == 10.0  # 64 * 16384 * 5120 * 2
    assert terms["one layer recomputed"] == 5.31  # 16384 * 174080 * 2
    assert "greatest at the last layer's backward, which adds 28.38 GiB" in learner.notes[0]
    assert "in its place: loss's forward 21.25 GiB, loss's backward 25.02 GiB" in learner.notes[0]
    assert {t.name: round(t.num_bytes / GIB, 2) for t in engine.terms} == {
        "weights": 7.63,  # 32.76e9 * 2 / 8
        "KV cache": 32.0,  # 64 * 16384 * 2 * 64 layers * 1024 * 2 B / 8
        "logits": 0.07,
    }
    assert [e.num_processes for e in (engine, scorer, learner)] == [32, 8, 24]
    assert all(e.fits for e in (engine, scorer, learner))


def test_terms_add_up_in_the_text():
    for line_sum, estimate in zip(("39.70", "49.86", "43.64"), estimates(compose(["run=paper_32b"])), strict=True):
        assert f"sum                         {line_sum} GiB" in plan_text(compose(["run=paper_32b"]))
        assert sum(t.num_bytes for t in estimate.terms) == estimate.num_bytes


def test_too_small_a_gpu_is_said():
    text = plan_text(compose(["run=paper_32b", "cluster.gpu_memory_gib=40"]))
    assert "of 34 GiB usable of 40 on the GPU: does not fit" in text
    assert "of 40 GiB on the GPU: does not fit" in text


def test_too_few_gpus_are_said():
    assert "7 nodes x 8 = 56 GPUs: does not fit" in plan_text(compose(["run=paper_32b", "cluster.nodes=7"]))
    assert "at least 8 nodes x 8 GPUs" in plan_text(compose(["run=paper_32b", "cluster.nodes=null"]))
    narrow = plan_text(compose(["run=paper_32b", "cluster.nodes=32", "cluster.gpus_per_node=2"]))
    assert "one bundle of 8 GPUs is more than a node's 2: does not fit" in narrow


def test_demo_numbers(smol_model_dir: Path, tiny_classifier_dir: Path):
    config = compose(["run=demo_cpu", f"model.path={smol_model_dir}", f"rewards.writing.path={tiny_classifier_dir}"])
    shape = shape_of("model.path", str(smol_model_dir))
    assert layer_activation_elements(shape) == 13_440  # 10*576 + 2*576 + 2*192 + 4*1536
    engine, learner = rollout_estimate(config, shape), learner_estimate(config, shape)
    assert "23,040 B" in engine.notes[0]  # 2 * 30 layers * 192 * 2 B
    assert {t.name: t.num_bytes for t in learner.terms}["Adam moments"] == 134_515_008 * 8
    assert "4 groups_per_step x 8 group_size = 32 samples a step" in plan_text(config)
    assert "rewards     1 x {CPU: 0.2} = 0.2 CPUs" in plan_text(config)
    unscored = [
        "run=demo_cpu",
        f"model.path={smol_model_dir}",
        "rewards.writing.path=null",
        "rewards.weights.writing=0",
    ]
    assert "rewards   none" in plan_text(compose(unscored))


def test_a_cache_too_small_for_one_sequence_is_said(smol_model_dir: Path, tiny_classifier_dir: Path):
    paths = [f"model.path={smol_model_dir}", f"rewards.writing.path={tiny_classifier_dir}"]
    config = compose(["run=demo_cpu", *paths, "actors.kv_cache_mib=8"])
    assert "it holds not even one sequence of full length: the engine will not start" in plan_text(config)


def test_the_same_config_gives_the_same_text():
    assert plan_text(compose(["run=paper_32b"])) == plan_text(compose(["run=paper_32b"]))


def test_unknown_shapes_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"model\.path='nobody/nothing': the plan needs its config\.json"):
        shape_of("model.path", "nobody/nothing")
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(UserError, match="cannot count the parameters of MambaForCausalLM; it knows Llama, Mistral"):
        shape_of("model.path", str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "vocab_size": 9}')
    with pytest.raises(UserError, match="lacks num_hidden_layers, intermediate_size, num_attention_heads; restore"):
        shape_of("model.path", str(tmp_path))
