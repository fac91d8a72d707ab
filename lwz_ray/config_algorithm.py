"""Config of what the policy is trained towards: advantage, loss, KL, off-policy correction, critic."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lwz_ray.config_base import Node, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Share

PolicyLossName = Literal["clip", "gspo", "cispo", "reinforce"]
AdvantageMethod = Literal[
    "mean_of_normalised",
    "normalise_sum",
    "normalise_sum_batch",
    "centred",
    "leave_one_out",
    "batch_whitened",
    "centred_batch_whitened",
    "gae",
]
Aggregation = Literal["sequence_mean", "token_mean", "fixed_length"]
KlEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["none", "token_truncated", "token_masked", "sequence_truncated", "sequence_masked", "decoupled"]

ONE_SCALE = ("normalise_sum", "centred", "leave_one_out", "batch_whitened", "centred_batch_whitened", "gae")
"""Advantages of one summed reward, from which a KL penalty can be taken."""


class AlgorithmConfig(Node):
    """The policy-gradient objective, put together from parts; a preset of `conf/algorithm/` is one published choice."""

    name: Annotated[str, Field(min_length=1)]
    """What plans and reports call it."""
    loss: PolicyLossName
    clip_low: Share
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: PositiveFloat
    advantage: AdvantageMethod
    loss_aggregation: Aggregation
    minibatches: Positive
    """Optimizer steps a batch is cut into."""
    epochs: Positive
    """How often a batch is gone through."""
    truncated: Literal["train", "mask"]
    """Samples cut by the token limit: trained like others, or masked out of the loss."""
    drop_no_spread: bool
    """Give up groups without any spread in their rewards and make others in their place (dynamic sampling)."""
    overlong_buffer_tokens: NonNegative
    """Before the token limit, over which the penalty grows from 0; 0: no penalty."""
    overlong_penalty: NonNegativeFloat
    """At the token limit, in units of the summed reward."""
    kl_coefficient: NonNegativeFloat
    kl_estimator: KlEstimator
    kl_in: Literal["loss", "reward"]
    reference_refresh_steps: NonNegative
    """Steps after which the reference becomes the present policy; 0: never."""
    entropy_coefficient: NonNegativeFloat
    old_logprobs: Literal["recomputed", "rollout"]
    """What the ratio is taken against: the learner's own logprobs before the step, or the engine's."""
    correction: Correction
    """From the engine's logprobs to `old_logprobs`."""
    correction_low: NonNegativeFloat
    """Masked variants leave out what lies below."""
    correction_high: PositiveFloat
    """Truncated variants cut weights to it; masked ones leave out what lies above."""
    mismatch_warning: PositiveFloat
    """Mean absolute difference of engine and learner logprobs, in nats a token, above which a run warns."""
    gae_gamma: Share
    gae_lambda: Annotated[float, Field(ge=0, le=1)]

    @property
    def uses_reference(self) -> bool:
        return self.kl_coefficient > 0

    @property
    def uses_critic(self) -> bool:
        return self.advantage == "gae"

    @property
    def needs_annotation(self) -> bool:
        """Whether facts about every token must be known before the first optimizer step of a batch.

        With one optimizer step a batch, the logprobs of its own forward pass are the old ones.
        """
        many_steps = self.minibatches * self.epochs > 1 and self.old_logprobs == "recomputed"
        return many_steps or self.uses_reference or self.uses_critic

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if self.kl_coefficient > 0 and self.kl_in == "reward" and self.advantage not in ONE_SCALE:
            raise ValueError(
                f"algorithm.kl_in=reward with algorithm.advantage={self.advantage}: the penalty needs one summed "
                f"reward to be taken from; use kl_in=loss or one of {', '.join(ONE_SCALE)}"
            )
        if self.old_logprobs == "rollout" and self.correction != "none":
            raise ValueError(
                f"algorithm.correction={self.correction} corrects from the engine's logprobs to recomputed ones; with "
                "algorithm.old_logprobs=rollout use correction=none"
            )
        if self.drop_no_spread and self.advantage in ("batch_whitened", "gae"):
            raise ValueError(
                f"algorithm.drop_no_spread=true with algorithm.advantage={self.advantage}: a group without spread "
                "still teaches where advantages are not taken within groups; use drop_no_spread=false"
            )
        if self.correction_low >= self.correction_high:
            raise ValueError(
                f"algorithm.correction_low={self.correction_low:g} must be below "
                f"algorithm.correction_high={self.correction_high:g}"
            )
        return self


class CriticConfig(Node):
    """The value network of `algorithm.advantage=gae`: its own learner group, on the backend of `learners`."""

    path: str | None
    """A Hugging Face folder of the policy's tokenizer; null: `model.path`, with a new head."""
    ranks: Positive
    num_cpus: PositiveFloat
    num_gpus: NonNegativeFloat
    """Of one rank."""
    lr: PositiveFloat
    warmup_steps: NonNegative
    """Steps at the start that train the critic alone."""
    value_clip: PositiveFloat | None
    """A value may move this far from its old one within a batch; null: freely."""
    whiten_advantages: bool
    """Over all trained tokens of a batch."""


def check_critic(critic: CriticConfig, steps: int, device: str, sequence_parallel: int) -> None:
    """Raise ValueError where a run with a critic could not do what it is for.

    steps: of the run; device and sequence_parallel: of the learners, and so of the critic.
    """
    if critic.warmup_steps >= steps:
        raise ValueError(
            f"critic.warmup_steps={critic.warmup_steps} with steps={steps}: the policy would never be trained; lower "
            "the first or raise the second"
        )
    if critic.ranks % sequence_parallel:
        raise ValueError(
            f"critic.ranks={critic.ranks} is no multiple of learners.sequence_parallel={sequence_parallel}, which "
            "holds for the critic too"
        )
    if device == "cuda" and critic.num_gpus == 0:
        raise ValueError(
            "learners.device=cuda with critic.num_gpus=0: the critic computes where the learners do; give each of its "
            "ranks a GPU, or a share of one"
        )
