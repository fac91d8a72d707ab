"""The records that cross rooms: frozen, slotted, numpy inside, lengths checked at construction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lwz_ray.errors import RewardFailure

FinishReason = Literal["stop", "length", "repetition", "abort"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A writing request. `length_range` is [L_lower, L_upper] in words (CJK: characters)."""

    prompt_id: str
    text: str
    language: Literal["en", "zh"]
    length_range: tuple[int, int] | None
    index: int
    """Position in the source, before shuffling."""
    reference: str | None = None
    """An answer to compare with, where the data has one."""

    def __post_init__(self) -> None:
        if self.length_range is not None:
            low, high = self.length_range
            if not 0 < low <= high:
                raise ValueError(f"prompt {self.prompt_id}: length_range {self.length_range} needs 0 < low <= high")


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What is asked of an engine for one group, reproducible by `seed` while weights do not change."""

    prompt_token_ids: Sequence[int]
    num_samples: int
    seed: int
    temperature: float | None = None
    """None: the engine's setting."""
    max_tokens: int | None = None
    """None: the engine's setting."""
    requested_words: int = 0
    """Upper end of the range that the prompt asks for; 0: not known."""
    round_index: int = 0
    """Training round that the group was admitted for; earlier ones are written first."""
    top_p: float | None = None
    """None: the engine's setting."""
    json_schema: str | None = None
    """A JSON schema, as JSON, that completions are held to; None: free text."""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Completion tokens [start, stop) were sampled with `policy_version`."""

    start: int
    stop: int
    policy_version: int


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """What the engine sampled: the closing tag is kept, so the text parsed and the tokens trained agree."""

    text: str
    token_ids: np.ndarray
    """int32 [num_completion_tokens]"""
    rollout_logprobs: np.ndarray
    """float32 [num_completion_tokens], of the processed distribution (temperature applied), in nats."""
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.rollout_logprobs.shape or self.token_ids.ndim != 1:
            raise ValueError(
                f"token_ids {self.token_ids.shape} and rollout_logprobs {self.rollout_logprobs.shape} must be equal 1-D"
            )
        if not self.version_spans:
            raise ValueError("a completion needs at least one version span")

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def policy_version_min(self) -> int:
        return min(s.policy_version for s in self.version_spans)

    @property
    def policy_version_max(self) -> int:
        return max(s.policy_version for s in self.version_spans)


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A completion taken apart. `answer` is what the length and writing rewards see, never the plan."""

    think: str | None
    answer: str | None
    """None where no answer segment opens; the text up to the cut where it does not close."""
    well_formed: bool
    """Exactly the arm's segments, in order, closed, and nothing else."""
    segments_found: float
    """Graded structure in [0, 1]: share of the arm's tags found in their place."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Prompt, completion and scores. `rewards` stays a dict by component; an advantage never overwrites it."""

    group_id: int
    sample_index: int
    prompt: Prompt
    prompt_token_ids: np.ndarray
    """int32 [num_prompt_tokens]"""
    completion: Completion
    parsed: ParsedText
    num_words: int
    rewards: dict[str, float | RewardFailure] = field(default_factory=dict)
    """A component is absent where it abstains."""
    measures: dict[str, float] = field(default_factory=dict)
    """Facts that are no rewards (repetition, distinct-n, …)."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """`group_size` samples of one prompt."""

    group_id: int
    prompt: Prompt
    samples: tuple[Sample, ...]

    @property
    def policy_version_min(self) -> int:
        return min(s.completion.policy_version_min for s in self.samples)

    @property
    def num_completion_tokens(self) -> int:
        return sum(s.completion.num_tokens for s in self.samples)


@dataclass(frozen=True, slots=True, eq=False)
class TrainSample:
    """What a learner needs of one sample; one entry per token of prompt + completion, 0 on prompt tokens."""

    token_ids: np.ndarray
    """int32 [num_tokens]"""
    num_prompt_tokens: int
    """At least 1 where anything is trained: the first completion token is predicted from the prompt's last."""
    loss_mask: np.ndarray
    """bool [num_tokens], true on trained completion tokens; built from roles, never from token values."""
    rollout_logprobs: np.ndarray
    """float32 [num_tokens]"""
    advantages: np.ndarray
    """float32 [num_tokens]"""
    token_weight: float
    """What each trained token's loss is multiplied by: the global denominator, so that losses simply add up."""
    token_ages: np.ndarray | None = None
    """int32 [num_tokens], the version being trained minus the one that sampled the token; None: all 0"""
    facts: "TokenFacts | None" = None
    returns: np.ndarray | None = None
    """float32 [num_tokens], what the critic's values are drawn to"""
    source: int = 0
    """Supervised training: index of the data source that the sample comes from."""

    def __post_init__(self) -> None:
        n = self.token_ids.shape[0]
        if not 0 <= self.num_prompt_tokens <= n or self.loss_mask[: self.num_prompt_tokens].any():
            raise ValueError(
                f"train sample: {self.num_prompt_tokens} prompt tokens of {n}, none of them may be trained"
            )
        if self.loss_mask[:1].any():
            raise ValueError("train sample: the first token of a sample cannot be trained, nothing predicts it")
        columns = {
            "loss_mask": self.loss_mask,
            "rollout_logprobs": self.rollout_logprobs,
            "advantages": self.advantages,
            "token_ages": self.token_ages,
            "returns": self.returns,
        }
        for name, column in columns.items():
            if column is not None and column.shape != (n,):
                raise ValueError(f"train sample: {n} token_ids, {name} {column.shape}")

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_trained(self) -> int:
        return int(self.loss_mask.sum())


@dataclass(frozen=True, slots=True, eq=False)
class TokenFacts:
    """What learners say of a sample's tokens before the first optimizer step of its batch.

    Each float32 [num_tokens], 0 where the loss mask is false; None where nobody was asked.
    """

    old_logprobs: np.ndarray | None = None
    """Of the policy, temperature applied."""
    ref_logprobs: np.ndarray | None = None
    """Of the reference, temperature applied."""
    values: np.ndarray | None = None
    """The critic's, of the state before each token."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the learner group reports of one step (sums already global)."""

    metrics: dict[str, float]
    """`train/what`: loss, grad_norm, clip_fraction, mismatch, lr, …"""
    optimizer_steps: int
    skipped: int
    """Optimizer steps skipped because loss or gradient was not finite."""
    num_trained_tokens: int
