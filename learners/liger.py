"""Liger's fused kernels (arXiv 2410.10989) for norms, rotary positions and gated MLPs of a loaded model, on GPUs.

Its fused losses stay off: log-probabilities and entropies are made in chunks by `lwz_ray.logprobs`.
"""

from typing import Any

from lwz_ray.errors import UserError


def apply_liger(lm: Any) -> None:
    """Exchange the modules of a transformers model in place, before it is sharded; parameters keep their names.

    Raises UserError where the package is missing or does not know the architecture.
    """
    try:
        from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
            _apply_liger_kernel_to_instance,
        )
        from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
            MODEL_TYPE_TO_APPLY_LIGER_FN,
        )
    except ImportError as error:
        raise UserError(
            f"learners.liger=true: the kernels cannot be imported ({error}); install `lwz_ray[liger]` on the learner "
            "nodes, or use learners.liger=false"
        ) from error
    model_type = lm.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(
            f"learners.liger=true: Liger has no kernels for model type {model_type!r}; use learners.liger=false"
        )
    _apply_liger_kernel_to_instance(
        lm, rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )
