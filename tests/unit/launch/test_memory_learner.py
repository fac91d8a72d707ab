"""A learner rank's memory, term by term against numbers worked out by hand for the 135M model."""

from pathlib import Path

import pytest

from launch.compose import compose
from launch.memory_learner import learner_estimate
from launch.shapes import ModelShape, lora_parameters, shape_of
from lwz_ray.config import Config
from lwz_ray.errors import UserError

N = 134_515_008
OUTPUT = 28_311_552  # 49152 * 576
LAYER = 3_540_096  # 2 * 576 * (576 + 192) + 3 * 576 * 1536 + 2 * 576
OUTER = OUTPUT + 576


@pytest.fixture
def shape(smol_model_dir: Path) -> ModelShape:
    return shape_of("model.path", str(smol_model_dir))


def configured(model: Path, *words: str) -> Config:
    """Return a config of one microbatch of 2,048 tokens a rank on 2 ranks."""
    sizes = ["model.max_length_tokens=2048", "learners.microbatch_tokens=2048", "sampling.max_tokens=1024"]
    batch = ["groups_per_step=1", "group_size=2", "learners.ranks=2", "learners.logprob_chunk_tokens=256"]
    no_reward = ["rewards.writing.path=null", "rewards.weights.writing=0", "learners.dtype=bfloat16"]
    alone = ["run.checkpoint_async=false"]
    return compose([f"model.path={model}", *sizes, *batch, *no_reward, *alone, *words])


def numbers(config: Config, shape: ModelShape) -> dict[str, float]:
    return {t.name: t.num_bytes for t in learner_estimate(config, shape).terms}


def test_fsdp(smol_model_dir: Path, shape: ModelShape) -> None:
    # At the end of backward all gradients are there, and the embedding's is on its way: in float32, copied by gloo.
    assert numbers(configured(smol_model_dir), shape) == {
        "master weights": N * 2,  # 4 bytes over 2 ranks
        "Adam moments": N * 4,
        "gradients": N * 2,
        "gradient before scatter": OUTER * 8,
    }


def test_long_samples_are_greatest_in_the_last_layer(smol_model_dir: Path, shape: ModelShape) -> None:
    words = ["model.max_length_tokens=8192", "learners.microbatch_tokens=8192", "run.name=long"]
    assert numbers(configured(smol_model_dir, *words), shape) == {
        "master weights": N * 2,
        "Adam moments": N * 4,
        "layer inputs": 283_115_520,  # 30 * 8192 * 576 * 2
        "gathered weights": 70_784_640,  # (2 * 3540096 + 28312128) * 2
        "one layer recomputed": 220_200_960,  # 8192 * 13440 * 2
        "output matrix's gradient": OUTPUT * 2,
        "gradient before scatter": LAYER * 8,
    }


def test_without_checkpointing_every_layer_keeps_its_activations(smol_model_dir: Path, shape: ModelShape) -> None:
    found = numbers(configured(smol_model_dir, "learners.activation_checkpointing=false"), shape)
    assert found["activations"] == 1_651_507_200  # 30 * 2048 * 13440 * 2
    assert "layer inputs" not in found


def test_without_resharding_all_layers_stay_gathered(smol_model_dir: Path, shape: ModelShape) -> None:
    words = ["learners.activation_checkpointing=false", "learners.reshard_after_forward=false"]
    assert numbers(configured(smol_model_dir, *words), shape)["gathered weights"] == N * 2


def test_a_longer_chunk_makes_the_logits_greatest(smol_model_dir: Path, shape: ModelShape) -> None:
    # Two float32 buffers and a product in bfloat16: 2048 * 49152 * 10.
    assert numbers(configured(smol_model_dir, "learners.logprob_chunk_tokens=4096"), shape)["logits of a chunk"] == (
        1_006_632_960
    )


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (1, {"weights": N * 2, "gradients": N * 4, "module's gradients": N * 2, "optimizer's temporaries": N * 4}),
        (2, {"weights": N * 2, "gradients": N * 2, "optimizer's temporaries": N * 4}),
        (3, {"weights": N, "gradients": N * 2, "gradient bucket": 200_000_000, "optimizer's temporaries": N * 6}),
    ],
)
def test_zero(smol_model_dir: Path, shape: ModelShape, stage: int, expected: dict[str, float]) -> None:
    config = configured(smol_model_dir, "learners=deepspeed", f"learners.zero_stage={stage}")
    assert numbers(config, shape) == {"master weights": N * 2, "Adam moments": N * 4} | expected


def test_adapters_alone_have_gradients_and_moments(smol_model_dir: Path, shape: ModelShape) -> None:
    trained = lora_parameters(shape, 16, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    assert trained == 4_884_480  # 30 * 16 * (2 * 1152 + 2 * 768 + 3 * 2112)
    found = numbers(configured(smol_model_dir, "lora=r16"), shape)
    assert {k: found[k] for k in ("weights", "master weights", "Adam moments")} == {
        "weights": N,  # frozen, in the compute dtype, over 2 ranks
        "master weights": trained * 2,
        "Adam moments": trained * 4,
    }
    assert "output matrix's gradient" not in found
    with pytest.raises(UserError, match=r"lora\.target_modules='query': the plan counts adapters on q_proj, k_proj"):
        lora_parameters(shape, 16, ["query"])


def test_a_reference_is_one_more_shard(smol_model_dir: Path, shape: ModelShape) -> None:
    assert numbers(configured(smol_model_dir, "algorithm.kl_coefficient=0.1"), shape)["reference"] == N * 2


def test_a_checkpoint_that_is_written_meanwhile_is_a_copy(smol_model_dir: Path, shape: ModelShape) -> None:
    found = numbers(configured(smol_model_dir, "run.checkpoint_async=true"), shape)
    assert found["checkpoint being written"] == N * 6
    gpu = ["learners.device=cuda", "learners.num_gpus=1", "actors.num_gpus=1", "run.checkpoint_async=true"]
    estimate = learner_estimate(configured(smol_model_dir, *gpu), shape)
    assert "checkpoint being written" not in {t.name for t in estimate.terms}
    assert estimate.notes[1] == ("checkpoint being written: 0.75 GiB of the host's memory = 134,515,008 x 12 B / 2")


def test_ranks_that_share_a_row_share_its_activations(smol_model_dir: Path, shape: ModelShape) -> None:
    words = ["learners.sequence_parallel=2", "learners.activation_checkpointing=false"]
    assert numbers(configured(smol_model_dir, *words), shape)["activations"] == 825_753_600  # of 1024 tokens


def test_offloaded_state_is_told_apart(smol_model_dir: Path, shape: ModelShape) -> None:
    gpu = ["learners.device=cuda", "learners.num_gpus=1", "actors.num_gpus=1", "learners.cpu_offload=true"]
    found = learner_estimate(configured(smol_model_dir, *gpu), shape)
    assert "master weights" not in {t.name for t in found.terms}
    # (4 + 8 B) * 134,515,008 / 2 ranks = 0.75 GiB
    assert "learners.cpu_offload=true: 0.75 GiB of state lie in the host's memory instead" in found.notes


def test_a_scalar_head_has_no_logits_and_publishes_nothing(tiny_classifier_dir: Path) -> None:
    shape = shape_of("critic.path", str(tiny_classifier_dir))
    config = configured(tiny_classifier_dir)
    found = learner_estimate(config, shape)
    assert not {"logits of a chunk", "output matrix's gradient", "weight buckets"} & {t.name for t in found.terms}
    assert "publication" not in found.notes[0]
