"""Tables that a stage adds to its report."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """One table with a heading and a sentence that says how to read it."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    """Cells as text; each row as long as `columns`."""
