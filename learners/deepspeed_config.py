"""DeepSpeed's configuration: generated from ours, with the user's tuning merged over it."""

import difflib
from typing import Any

from learners.settings import LearnerSettings

BUCKET_ELEMENTS = 50_000_000
"""Gradients reduced, and parameters gathered, at once: 200 MB in float32. DeepSpeed keeps such a buffer per rank."""
WHOLE_BELOW_ELEMENTS = 10_000
"""ZeRO-3 keeps smaller parameters (norms, biases) whole on every rank: gathering them costs more than it saves."""

_REDUCTION = "nothing: gradients are accumulated and reduced in float32"
_OPTIMIZER = "optimizer.lr, optimizer.betas, optimizer.eps and optimizer.weight_decay"
OURS = {
    "train_batch_size": "groups_per_step and group_size",
    "train_micro_batch_size_per_gpu": "learners.microbatch_tokens",
    "gradient_accumulation_steps": "learners.microbatch_tokens and algorithm.minibatches",
    "gradient_clipping": "optimizer.max_grad_norm",
    "optimizer": _OPTIMIZER,
    "scheduler": "optimizer.lr and optimizer.warmup_steps",
    "bf16": "learners.dtype",
    "bfloat16": "learners.dtype",
    "fp16": "learners.dtype",
    "amp": "learners.dtype",
    "torch_autocast": "learners.dtype",
    "data_types": _REDUCTION,
    "communication_data_type": _REDUCTION,
    "activation_checkpointing": "learners.activation_checkpointing",
    "sequence_parallel_size": "learners.sequence_parallel",
    "checkpoint": "nothing: another number of ranks is seen when a checkpoint is loaded",
    "zero_allow_untested_optimizer": _OPTIMIZER,
    "zero_force_ds_cpu_optimizer": _OPTIMIZER,
    "zero_optimization.stage": "learners.zero_stage",
    "zero_optimization.cpu_offload": "learners.cpu_offload",
    "zero_optimization.cpu_offload_param": "learners.cpu_offload",
    "zero_optimization.offload_optimizer.device": "learners.cpu_offload",
    "zero_optimization.offload_optimizer.ratio": "learners.cpu_offload",
    "zero_optimization.offload_param.device": "learners.cpu_offload",
}
"""Keys of DeepSpeed's that this project sets, and what to set instead."""

_TREE: dict[str, Any] = {
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "comms_logger": {"enabled": bool, "verbose": bool, "prof_all": bool, "debug": bool, "prof_ops": list},
    "flops_profiler": {
        "enabled": bool,
        "profile_step": int,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
        "output_file": str,
    },
    "zero_optimization": {
        "contiguous_gradients": bool,
        "reduce_scatter": bool,
        "reduce_bucket_size": int,
        "use_multi_rank_bucket_allreduce": bool,
        "allgather_partitions": bool,
        "allgather_bucket_size": int,
        "overlap_comm": bool,
        "round_robin_gradients": bool,
        "sub_group_size": int,
        "ignore_unused_parameters": bool,
        "stage3_prefetch_bucket_size": int,
        "stage3_param_persistence_threshold": int,
        "stage3_model_persistence_threshold": int,
        "stage3_max_live_parameters": int,
        "stage3_max_reuse_distance": int,
        "stage3_module_granularity_threshold": int,
        "stage3_use_all_reduce_for_fetch_params": bool,
        "stage3_allgather_sequential": bool,
        "memory_efficient_linear": bool,
        "log_trace_cache_warnings": bool,
        "offload_optimizer": {"pin_memory": bool, "buffer_count": int, "fast_init": bool},
        "offload_param": {"pin_memory": bool, "buffer_count": int, "buffer_size": int, "max_in_cpu": int},
    },
}
"""What a user may tune: how much is moved at once, when, and what is reported. Nothing here changes a result."""


def check_overrides(found: Any, source: str) -> None:
    """Raise ValueError, in one line, on the first key of a user's config that is ours, unknown, or of a wrong type.

    source: what the line opens with, such as `learners.deepspeed_config='ds.json'`.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{source}: holds {type(found).__name__}, not a JSON object of DeepSpeed's keys")
    _check_level(found, _TREE, "", source)


def _check_level(found: dict[str, Any], allowed: dict[str, Any], above: str, source: str) -> None:
    for key, value in found.items():
        path = f"{above}{key}"
        if path in OURS:
            raise ValueError(f"{source}: {path} is set by this project; set {OURS[path]} instead")
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, 1)
            hint = f"did you mean {above}{near[0]}?" if near else f"known here: {', '.join(allowed)}"
            raise ValueError(f"{source}: {path} is not a key that may be set; {hint}")
        wanted = allowed[key]
        if isinstance(wanted, dict):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {path}={value!r} is no JSON object")
            _check_level(value, wanted, f"{path}.", source)
        elif not _fits(value, wanted):
            raise ValueError(f"{source}: {path}={value!r} is no {wanted.__name__}")


def _fits(value: Any, wanted: type) -> bool:
    if wanted is float:
        return type(value) in (int, float)
    return type(value) is wanted  # a bool is an int to isinstance


def zero_config(settings: LearnerSettings) -> dict[str, Any]:
    """Return DeepSpeed's config. Batch sizes are formal: the trainer owns the batches and the end of each."""
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if settings.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": WHOLE_BELOW_ELEMENTS,
        }
    if settings.cpu_offload:
        host = {"device": "cpu", "pin_memory": settings.device == "cuda"}
        zero["offload_optimizer"] = host
        if settings.zero_stage == 3:
            zero["offload_param"] = dict(host)
    generated = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        # The optimizer is torch's, offloaded too: DeepSpeed's own for the host is compiled where it runs.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": settings.optimizer == "sgd",
        "zero_optimization": zero,
    }
    check_overrides(settings.deepspeed_config, "LearnerSettings.deepspeed_config")
    return merge(generated, settings.deepspeed_config)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` with the values of `above` over it, level by level.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out
