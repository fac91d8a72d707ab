"""What an objective offers to the trainer, and the choice between them."""

from typing import Any, Protocol

import torch

from learners.critic_objective import CriticObjective
from learners.language_objective import LanguageObjective
from learners.policy_objective import PolicyObjective
from learners.preference_objective import PreferenceObjective
from learners.settings import LearnerSettings


class Objective(Protocol):
    """Turns one packed microbatch into a share of a global loss."""

    @property
    def sum_keys(self) -> tuple[str, ...]:
        """Names of the sums that `loss` returns; `loss` and `tokens`, the trained ones, are among them."""
        ...

    def loss(self, model: Any, batch: Any, device: torch.device) -> tuple[torch.Tensor, list[float]]:
        """Return a scalar with gradient, whose sum over microbatches and ranks is the loss, and sums to report."""
        ...

    def facts(self, model: Any, batch: Any, device: torch.device) -> dict[str, torch.Tensor]:
        """Return what the present weights say of the batch, by name and without gradient.

        Of token objectives: fields of `TokenFacts`, float32 [num_trained].
        """
        ...

    def metrics(self, totals: dict[str, float], optimizer_steps: int) -> dict[str, float]:
        """Return `train/what` of the sums over all ranks and all steps that were taken."""
        ...


def build_objective(settings: LearnerSettings) -> Objective:
    """Return the objective that fits the network of `learners.models.build_model`."""
    if settings.objective == "preference":
        return PreferenceObjective(settings.center_coefficient)
    if settings.objective == "critic":
        return CriticObjective(settings.value_clip)
    if settings.objective == "language_model":
        return LanguageObjective(settings.sources)
    if settings.objective == "policy" and settings.algorithm is not None:
        return PolicyObjective(settings.algorithm, settings.temperature)
    raise ValueError(f"objective={settings.objective!r} needs LearnerSettings.algorithm")
