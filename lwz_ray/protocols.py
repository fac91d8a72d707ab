"""The small protocols that the loop talks to; Ray handles and in-process fakes both satisfy them."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from lwz_ray.preferences import EncodedPair
from lwz_ray.records import Completion, Prompt, RolloutRequest, Sample, StepResult, TokenFacts, TrainSample


class Rollouts(Protocol):
    """Generates completions."""

    def stream(self, request: RolloutRequest) -> AsyncGenerator[tuple[int, Completion], None]:
        """Yield (sample_index, completion) as each ends, every index once."""
        ...


class GroupScoring(Protocol):
    """The scoring of one group, under way while its other samples are still being written."""

    def add(self, sample: Sample) -> None:
        """Start scoring a sample; returns at once."""
        ...

    async def finish(self) -> list[Sample]:
        """Wait for every score or its deadline; return the samples by `sample_index`, rewards and measures filled."""
        ...

    def cancel(self) -> None:
        """Stop what is under way; for a group that is given up."""
        ...


class Scorer(Protocol):
    """Scores samples with every component; a failure is a RewardFailure value."""

    def open(self, prompt: Prompt, num_samples: int) -> GroupScoring:
        """Begin a group of `num_samples` samples of one prompt."""
        ...


class TextScorer(Protocol):
    """A reward model: higher is better, any real number."""

    async def score_texts(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Return one raw score a pair; raises InfrastructureError where it cannot."""
        ...


class Learner(Protocol):
    """Trains the policy."""

    async def train(self, minibatches: Sequence[Sequence[Any]]) -> StepResult:
        """Take one optimizer step per minibatch of the objective's items (policy: TrainSample)."""
        ...

    async def annotate(self, samples: Sequence[TrainSample]) -> list[TokenFacts]:
        """Return what this group knows of each sample's tokens: old and reference logprobs, or a critic's values."""
        ...

    async def refresh_reference(self) -> None:
        """Make the present policy the reference."""
        ...

    async def save(self, folder: str) -> None:
        """Take the state of model, optimizer, scheduler and RNG; written into an existing folder by `finish_save`.

        Training may go on as soon as this returns.
        """
        ...

    async def finish_save(self) -> None:
        """Wait until what the last `save` took is on disk."""
        ...

    async def load(self, folder: str) -> None: ...

    async def export(self, folder: str) -> None:
        """Write a Hugging Face folder (safetensors)."""
        ...


class PairLearner(Protocol):
    """A learner of the preference objective."""

    async def score(self, pairs: Sequence[EncodedPair]) -> list[tuple[float, float]]:
        """Return (score of the chosen text, score of the rejected one) by the present weights, in the pairs' order."""
        ...


class WeightSync(Protocol):
    """Moves the learner's weights to every rollout actor."""

    async def stage(self, policy_version: int) -> dict[str, float]:
        """Take the learner's weights; it may train again when this returns. Return `weights/what` timings."""
        ...

    async def load(self, policy_version: int) -> dict[str, float]:
        """Return `weights/what` timings once every rollout engine serves what was staged last as this version."""
        ...


class Tracker(Protocol):
    """Takes what a run measures; writes it somewhere."""

    def log_step(self, metrics: dict[str, Any]) -> None: ...

    def log_samples(self, samples: Sequence[Sample], advantages: Sequence[float], step: int, split: str) -> None: ...
