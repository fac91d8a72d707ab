"""What DeepSpeed is told: generated from the settings, with a user's tuning over it, and nothing that is ours."""

from pathlib import Path
from typing import Any

import pytest

from learners.deepspeed_config import check_overrides, merge, zero_config
from tests.learner_parts import settings


def test_the_users_keys_lie_over_the_generated_ones() -> None:
    user = {"zero_optimization": {"reduce_bucket_size": 7, "overlap_comm": False}, "wall_clock_breakdown": True}
    made = zero_config(settings(Path("m"), zero_stage=3, deepspeed_config=user))
    assert made == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": False},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": False,
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 7,
            "allgather_bucket_size": 50_000_000,
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 10_000,
            "overlap_comm": False,
        },
        "wall_clock_breakdown": True,
    }


@pytest.mark.parametrize(
    ("stage", "offloaded"), [(1, {"offload_optimizer"}), (3, {"offload_optimizer", "offload_param"})]
)
def test_offload_takes_parameters_along_at_stage_3(stage: int, offloaded: set[str]) -> None:
    pinned = {"zero_optimization": {"offload_optimizer": {"pin_memory": True}}}
    made = zero_config(settings(Path("m"), zero_stage=stage, cpu_offload=True, deepspeed_config=pinned))
    zero = made["zero_optimization"]
    assert {key for key in zero if key.startswith("offload")} == offloaded
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    if stage == 3:
        assert zero["offload_param"] == {"device": "cpu", "pin_memory": False}


def test_merging_changes_neither_side() -> None:
    below, above = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}
    assert merge(below, above) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
    assert (below, above) == ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5})


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ([], "F: holds list, not a JSON object of DeepSpeed's keys"),
        (
            {"gradient_clipping": 1.0},
            "F: gradient_clipping is set by this project; set optimizer.max_grad_norm instead",
        ),
        ({"bf16": {"enabled": True}}, "F: bf16 is set by this project; set learners.dtype instead"),
        (
            {"zero_optimization": {"stage": 3}},
            "F: zero_optimization.stage is set by this project; set learners.zero_stage instead",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "F: zero_optimization.offload_optimizer.device is set by this project; set learners.cpu_offload instead",
        ),
        (
            {"zero_optimization": {"overlap_com": True}},
            "F: zero_optimization.overlap_com is not a key that may be set; did you mean "
            "zero_optimization.overlap_comm?",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "5e8"}},
            "F: zero_optimization.reduce_bucket_size='5e8' is no int",
        ),
        ({"zero_optimization": {"overlap_comm": 1}}, "F: zero_optimization.overlap_comm=1 is no bool"),
        ({"zero_optimization": 2}, "F: zero_optimization=2 is no JSON object"),
    ],
)
def test_a_key_that_cannot_be_set_is_named(found: Any, line: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_overrides(found, "F")
    assert str(raised.value) == line
