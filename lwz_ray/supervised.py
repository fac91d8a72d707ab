"""What the supervised loop is fed with: batches of samples in an order that a few integers resume."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lwz_ray.records import TrainSample


class SupervisedBatches(Protocol):
    """The training data of `stage=pretrain` or `stage=sft`, one step after the other, and what is held out."""

    @property
    def names(self) -> tuple[str, ...]:
        """Sources by index; `TrainSample.source` points here, and losses are reported by these names."""
        ...

    @property
    def held_out(self) -> Sequence[TrainSample]:
        """Samples that no step trains on, for perplexity."""
        ...

    @property
    def held_out_texts(self) -> Sequence[int]:
        """Which text, counted from 0, each held-out sample is of: a long document is held out in several pieces."""
        ...

    @property
    def digest(self) -> str:
        """A word that changes with everything that order and content of the batches depend on."""
        ...

    @property
    def counts(self) -> Mapping[str, Any]:
        """What became of every row or document, and what each source has given so far."""
        ...

    def next(self) -> list[TrainSample]:
        """Return the next step's samples; each trained token has the weight 1 / (trained tokens of the step)."""
        ...

    def state(self) -> dict[str, Any]:
        """Return where the data stands after the last `next`, as JSON's own types: `restore` goes on to the token."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken."""
        ...
