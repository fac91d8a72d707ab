"""The small protocols that the loop talks to; Ray handles and in-process fakes both satisfy them."""

from collections.abc import Sequence
from typing import Any, Protocol

from lwz_ray.records import Completion, Prompt, Sample, StepResult, TrainSample


class Rollouts(Protocol):
    """Generates completions."""

    async def generate(self, prompt_token_ids: Sequence[int], num_samples: int, seed: int) -> list[Completion]:
        """Return `num_samples` completions of one prompt, reproducible by `seed` on idle weights."""
        ...


class Scorer(Protocol):
    """Scores a whole group of samples with every component."""

    async def score(self, prompt: Prompt, samples: Sequence[Sample]) -> list[Sample]:
        """Return the samples with `rewards` and `measures` filled; a failure is a RewardFailure value."""
        ...


class TextScorer(Protocol):
    """A reward model: higher is better, any real number."""

    async def score_texts(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Return one raw score a pair; raises InfrastructureError where it cannot."""
        ...


class Learner(Protocol):
    """Trains the policy."""

    async def train(self, minibatches: Sequence[Sequence[TrainSample]]) -> StepResult:
        """Take one optimizer step per minibatch."""
        ...

    async def save(self, folder: str) -> None:
        """Write model, optimizer, scheduler and RNG states into an existing folder."""
        ...

    async def load(self, folder: str) -> None: ...

    async def export(self, folder: str) -> None:
        """Write a Hugging Face folder (safetensors)."""
        ...


class WeightSync(Protocol):
    """Moves the learner's weights to every rollout actor."""

    async def publish(self, policy_version: int) -> dict[str, float]:
        """Return `weights/what` timings and sizes once every actor serves this version."""
        ...


class Tracker(Protocol):
    """Takes what a run measures; writes it somewhere."""

    def log_step(self, metrics: dict[str, Any]) -> None: ...

    def log_samples(self, samples: Sequence[Sample], advantages: Sequence[float], step: int, split: str) -> None: ...
