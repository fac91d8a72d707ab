"""Config of what may go wrong: how it is noticed, what it costs, and when the run gives up."""

from typing import Self

from pydantic import model_validator

from lwz_ray.config_base import Node, NonNegative, Positive, PositiveFloat


class FailuresConfig(Node):
    """Budgets are counts over a whole job; beyond one the run stops with the reason and a checkpoint."""

    max_consecutive_skipped_steps: Positive
    max_consecutive_dropped_groups: Positive
    heartbeat_every_s: PositiveFloat
    """Each rollout engine, reward replica and learner rank is asked for a sign of life this often."""
    heartbeat_timeout_s: PositiveFloat
    """One that does not answer for this long is taken for frozen, killed and replaced."""
    max_sample_attempts: Positive
    """How often a sample may be begun or taken up again after its engine was lost."""
    max_rollout_losses: NonNegative
    """Rollout Ray actors that may be lost and replaced."""
    max_reward_losses: NonNegative
    """Reward Ray actors that may be lost and replaced."""
    max_learner_restarts: NonNegative
    """Restarts of the learner group, each from the newest checkpoint as a new attempt."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.heartbeat_timeout_s <= self.heartbeat_every_s:
            raise ValueError(
                f"failures.heartbeat_timeout_s={self.heartbeat_timeout_s:g} must be above "
                f"failures.heartbeat_every_s={self.heartbeat_every_s:g}"
            )
        return self
