"""The reference policy on one rank: a copy of earlier weights, sharded as the trained ones, swapped in to be asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from learners.backend import Backend
from lwz_ray.errors import UserError


class Reference:
    """Starts as the weights that the backend holds now. Every rank makes the same calls."""

    def __init__(self, backend: Backend, refresh_steps: int) -> None:
        """refresh_steps: 0 where it stays the start; then every start of a run makes it anew and no file keeps it."""
        self._backend, self._refresh_steps = backend, refresh_steps
        self._snapshot = backend.snapshot()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the reference's weights; only forward passes without gradient are allowed meanwhile."""
        self._backend.swap(self._snapshot)
        try:
            yield
        finally:
            self._backend.swap(self._snapshot)

    def refresh(self) -> None:
        """Make the present weights the reference."""
        self._snapshot = []  # given back first: two copies never lie beside each other
        self._snapshot = self._backend.snapshot()

    def save(self, folder: str) -> None:
        """Write this rank's part to `reference_<rank>.pt`, where the reference is refreshed; on disk on return."""
        if self._refresh_steps:
            torch.save(self._snapshot, self._file(folder))

    def load(self, folder: str) -> None:
        """Load what `save` wrote. Raises UserError where there is none, or where another number of ranks wrote it."""
        if not self._refresh_steps:
            return
        file, ranks = self._file(folder), self._backend.world_size
        parts = len(list(Path(folder).glob("reference_*.pt")))
        if not parts:
            raise UserError(
                f"algorithm.reference_refresh_steps={self._refresh_steps}: the checkpoint {folder} holds no reference; "
                "continue with algorithm.reference_refresh_steps=0, as it was written"
            )
        if parts != ranks:
            raise UserError(
                f"learners.ranks={ranks}: the checkpoint {folder} holds a refreshed reference of {parts} ranks, which "
                f"only as many can read; continue with learners.ranks={parts}"
            )
        for mine, theirs in zip(self._snapshot, torch.load(file, weights_only=True, map_location="cpu"), strict=True):
            mine.copy_(theirs)

    def _file(self, folder: str) -> Path:
        return Path(folder, f"reference_{self._backend.rank}.pt")
