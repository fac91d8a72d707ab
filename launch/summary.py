"""`summary.json`: what became of a run, on one screen."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["completed", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """The ledger of groups; `in_flight` are admitted and neither trained nor dropped when the run ended."""

    admitted: int
    trained: int
    dropped: dict[str, int]
    in_flight: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The contract of `summary.json`; scripts and tests read these names."""

    stage: str
    status: Status
    steps: int
    skipped_steps: int
    policy_version: int
    wall_s: float
    """Of this job, from start to summary."""
    groups: GroupCounts
    tokens_generated: int
    """Completion tokens."""
    tokens_trained: int
    active_rewards: tuple[str, ...]
    eval: dict[str, Any] | None = None
    """What `lwz_ray.evaluation.compare` returns; null where there was no evaluation."""
    error: str | None = None
    """One line, set exactly where the run failed."""
    failures: dict[str, dict[str, int]] = field(default_factory=dict)
    """What went wrong in this job, by kind and source; see `lwz_ray.failures`."""
    restarts: int = 0
    """Restarts of the learner group, over all attempts."""
    lost_steps: int = 0
    """Steps that were taken and then taken again from a checkpoint, over all attempts."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What the stage measured, by name at the top level: `preference`, `curate`, …"""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further facts a stage wants to keep, e.g. rows of data that were skipped."""

    def __post_init__(self) -> None:
        if (self.status == "failed") != (self.error is not None):
            raise ValueError(
                f"status {self.status!r} with error {self.error!r}: a failed run, and only it, has an error"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the object that the file holds."""
        error = None if self.error is None else " ".join(self.error.split())
        return {
            "stage": self.stage,
            "status": self.status,
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "policy_version": self.policy_version,
            "wall_s": self.wall_s,
            "groups": asdict(self.groups),
            "tokens": {"generated": self.tokens_generated, "trained": self.tokens_trained},
            "eval": self.eval,
            "active_rewards": list(self.active_rewards),
            "error": error,
            "failures": self.failures,
            "restarts": self.restarts,
            "lost_steps": self.lost_steps,
            **self.measured,
            **({"extra": self.extra} if self.extra else {}),
        }
