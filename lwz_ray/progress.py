"""Where a run stands."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Progress:
    """Counted apart: steps, policy versions, optimizer steps, skipped ones."""

    step: int = 0
    policy_version: int = 0
    """Of the learner's weights; engines may serve the one before while they load it."""
    optimizer_steps: int = 0
    skipped_steps: int = 0
    tokens_generated: int = 0
    tokens_trained: int = 0
    next_group: int = 0
    """Groups are numbered by their position in the prompt order, so this is the data position too."""

    def as_dict(self) -> dict[str, int]:
        return asdict(self)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `as_dict` gave."""
        for name, value in asdict(Progress(**state)).items():
            setattr(self, name, value)
