"""What every trained network does to the transformers model that it wraps."""

from typing import Any


def made_trainable(lm: Any, activation_checkpointing: bool, liger: bool) -> Any:
    """Return `lm` in training mode, without a key-value cache.

    liger: with Liger's kernels; raises UserError where they cannot be had.
    """
    lm.config.use_cache = False
    if liger:
        from learners.liger import apply_liger

        apply_liger(lm)
    if activation_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lm.train()
    return lm
