"""The endless documents of one source, taken in pieces, at a place that three integers resume."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lwz_ray.corpus_encoding import DocumentEncoder
from lwz_ray.corpus_index import DocumentIndex


class DocumentStream:
    """Epoch after epoch of a source's documents; one document is in memory at a time."""

    def __init__(self, index: DocumentIndex, encoder: DocumentEncoder, seed: int, number: int, shuffle: bool) -> None:
        """number: of the source, so that two sources of equal length have orders of their own."""
        self._index, self._encoder = index, encoder
        self._seed, self._number, self._shuffle = seed, number, shuffle
        self._epoch, self._position, self._offset = 0, 0, 0
        self._order: tuple[int, np.ndarray] | None = None
        self._document: np.ndarray | None = None
        self.tokens = 0
        """Trained tokens that were taken so far."""

    @property
    def epochs(self) -> float:
        """Return how often the source has come round, in documents that were begun."""
        begun = self._position + (self._offset > 0)
        return self._epoch + begun / self._index.num_documents

    @property
    def remaining(self) -> int:
        """Return the trained tokens that the present document still has, at least 1."""
        return self._tokens().shape[0] - 1 - self._offset

    def take(self, trained: int) -> np.ndarray:
        """Return the next piece, int32 [trained + 1]: a token of context, then `trained` <= `remaining` tokens."""
        tokens = self._tokens()
        found = tokens[self._offset : self._offset + trained + 1]
        self._offset += trained
        self.tokens += trained
        if self._offset == tokens.shape[0] - 1:
            self._offset, self._document = 0, None
            self._position += 1
            if self._position == self._index.num_documents:
                self._epoch, self._position = self._epoch + 1, 0
        return found

    def state(self) -> dict[str, int]:
        """Return the place in the stream; `offset` counts trained tokens of the present document."""
        return {"epoch": self._epoch, "position": self._position, "offset": self._offset, "tokens": self.tokens}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken."""
        self._epoch, self._position, self._offset = state["epoch"], state["position"], state["offset"]
        self.tokens = state["tokens"]
        self._document = None

    def _tokens(self) -> np.ndarray:
        if self._document is None:
            if self._order is None or self._order[0] != self._epoch:
                self._order = (self._epoch, self._index.order(self._seed, self._epoch, self._number, self._shuffle))
            self._document = self._encoder.encode(self._index.text(int(self._order[1][self._position])))
        return self._document
