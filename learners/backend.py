"""What a backend offers to the trainer; `learners.fsdp` and `learners.deepspeed` implement it."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch


class Backend(Protocol):
    """One rank's shard of a model and its optimizer. Every rank makes the same calls in the same order."""

    rank: int
    world_size: int
    device: torch.device
    model: Any
    """Called by the objective; parameters carry Hugging Face names behind `lm.`."""

    @property
    def is_sender(self) -> bool:
        """Rank 0 speaks for the group."""
        ...

    def accumulate(self, loss: torch.Tensor, last: bool) -> None:
        """Run backward on a share of a global sum; gradients are summed over ranks by the `last` one of a batch."""
        ...

    def clip_gradients(self, max_norm: float) -> float:
        """Clip by the global norm; return the norm before clipping."""
        ...

    def apply(self, lr: float) -> None:
        """Take the optimizer step and clear the gradients."""
        ...

    def discard(self) -> None:
        """Drop the gradients of a skipped step."""
        ...

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """Return the element-wise sums, equal on every rank."""
        ...

    def stream_weights(self, dtype: torch.dtype, trainable_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name behind `lm.`, whole tensor), a collective each; gathered, one tensor exists at a time.

        trainable_only: leave out parameters without a gradient, as the base weights under adapters are.
        """
        ...

    def weight_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return (Hugging Face name, whole shape) in the order of `stream_weights`, without a transfer."""
        ...

    def snapshot(self) -> list[torch.Tensor]:
        """Return copies of this rank's shards of the trained weights, in a fixed order."""
        ...

    def swap(self, snapshot: list[torch.Tensor]) -> None:
        """Exchange the contents of weights and snapshot, in place; a second call undoes it.

        Between the two calls only forward passes without gradient are allowed.
        """
        ...

    def save(self, folder: str) -> None:
        """Take this rank's part of a checkpoint; it may be written to the existing folder by `finish_save` only."""
        ...

    def finish_save(self) -> None:
        """Return when the last `save` is on disk; raises what went wrong with it. No-op where none is under way."""
        ...

    def load(self, folder: str) -> None: ...

    def close(self) -> None: ...


def other_backend(wanted: str, folder: str, found: str) -> str:
    """Return the line for a checkpoint whose payload the other backend wrote."""
    return (
        f"learners={wanted}: the checkpoint {folder} was written by learners={found}; continue with that, or start a "
        "new run from the weights alone, with model.path=… the export/ folder of that run"
    )
