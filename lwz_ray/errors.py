"""Errors that a user can act on, and failures that are values."""

from dataclasses import dataclass
from typing import Literal


class UserError(Exception):
    """Say in one line what is wrong: the thing, the value, the remedy. The front door prints it."""


class InfrastructureError(RuntimeError):
    """A part of the system (engine, worker, cluster) failed or did not answer in time."""


class WaitTimeoutError(InfrastructureError):
    """A wait ran out; names what was waited for and for how long."""

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(f"waited {timeout_s:g} s for {what} and gave up")
        self.what = what
        self.timeout_s = timeout_s

    def __reduce__(self) -> tuple[type["WaitTimeoutError"], tuple[str, float]]:
        """Travel between processes: the error is built anew from what it was built from."""
        return type(self), (self.what, self.timeout_s)


class LearnerLostError(InfrastructureError):
    """A learner rank died or does not answer: the group's state is gone and must come from a checkpoint."""


@dataclass(frozen=True, slots=True)
class RewardFailure:
    """A reward that could not be computed. Never a number: a failed reward is not reward 0."""

    component: str
    reason: str
    blame: Literal["data", "infrastructure"]
    action: Literal["abstain", "drop_group"] = "drop_group"
    """What becomes of it: the component is left out of the sample, or the group is dropped."""
