"""How long supervised training goes on, and how often that makes the data come round."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lwz_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Training ends with the step that reaches `max_tokens` trained tokens, or after `steps`, whichever is first."""

    steps: int
    max_tokens: int | None

    def reached(self, step: int, tokens_trained: int) -> bool:
        """Say whether training is over after `step` steps with that many trained tokens."""
        return step >= self.steps or (self.max_tokens is not None and tokens_trained >= self.max_tokens)

    def planned_steps(self, tokens_per_step: float) -> int:
        """Return the number of steps, where each trains that many tokens; a schedule of rates ends there."""
        if self.max_tokens is None:
            return self.steps
        return min(self.steps, math.ceil(self.max_tokens / tokens_per_step))

    def tokens(self, tokens_per_step: float) -> float:
        """Return the tokens that will have been trained, the last step's whole."""
        return self.planned_steps(tokens_per_step) * tokens_per_step


def check_epochs(
    tokens: float, shares: Mapping[str, float], available: Mapping[str, float], max_epochs: float
) -> dict[str, float]:
    """Return how often each source comes round: epochs = share · tokens / available.

    tokens: trained in all; shares: of each source, by name; available: its trained tokens. Raises UserError where a
    source would come round more often than `max_epochs`.
    """
    epochs = {name: share * tokens / available[name] for name, share in shares.items()}
    name = max(epochs, key=lambda n: epochs[n])
    if epochs[name] > max_epochs:
        raise UserError(
            f"corpus.sources.{name}: {shares[name]:.3%} of {tokens:,.0f} tokens are {shares[name] * tokens:,.0f}, but "
            f"it holds {available[name]:,.0f}: {epochs[name]:.2f} epochs, over corpus.max_epochs={max_epochs:g}; give "
            "it more documents or less weight, or lower corpus.max_tokens or steps"
        )
    return epochs
