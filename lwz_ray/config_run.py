"""Config that every stage shares: the run's folder, the policy, its data, prompts, sampling, optimizer and trackers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lwz_ray.config_base import Language, Node, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Share


class RunConfig(Node):
    """Where a run lives and how it continues."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    dir: str
    """Parent of the run folder; absolute in a submitted Ray job."""
    resume: Literal["never", "auto"]
    lease_timeout_s: Annotated[float, Field(ge=3.0)]
    """A driver that shows no life in the run folder for this long has lost it; it gives a sign every second."""
    checkpoint_every_steps: Positive
    checkpoint_async: bool
    """Write a checkpoint while training goes on; false: wait for it."""
    keep_checkpoints: Positive
    """The newest."""
    keep_best: NonNegative
    """And the best by `best_metric`."""
    best_metric: str | None
    """A key of metrics.jsonl."""
    best_mode: Literal["max", "min"]
    git_revision: str | None = None
    """Passed in where the code travels without `.git` (a submitted job)."""

    @model_validator(mode="after")
    def _best_has_a_metric(self) -> Self:
        if self.keep_best and self.best_metric is None:
            raise ValueError(
                f"run.keep_best={self.keep_best} but run.best_metric is null: name a key of metrics.jsonl, such as "
                "rewards/total, or set run.keep_best=0"
            )
        return self


class ModelConfig(Node):
    """The policy's Hugging Face folder."""

    path: str
    trust_remote_code: bool
    max_length_tokens: Positive
    """Prompt plus completion; at most the model's positions."""


class ColumnsConfig(Node):
    """Names of the source's columns; null where it has none."""

    prompt: str
    length_range: str | None
    language: str | None
    id: str | None
    reference: str | None
    """A reference answer, which judge.mode=pairwise_reference compares with."""


class DataConfig(Node):
    """A prompt source: a .jsonl or .parquet file, or `hub:owner/name`."""

    path: str
    split: str
    columns: ColumnsConfig
    languages: Annotated[list[Language], Field(min_length=1)]
    """Requests in other languages are left out and counted."""
    on_bad_row: Literal["error", "skip"]
    max_prompt_tokens: Positive
    """Longer prompts are left out and counted."""
    shuffle: bool


class EvalConfig(Node):
    """Held-out evaluation with the same rewards as training."""

    path: str
    split: str
    num_prompts: Positive
    samples_per_prompt: Positive
    every_steps: NonNegative
    """0: only before and after training."""
    bootstrap_resamples: Positive


class TemplateConfig(Node):
    """How a request becomes a prompt. `{request}` stands for the user's text."""

    arm: Literal["think", "direct"]
    en: str
    zh: str
    chat: bool
    """Wrap in the tokenizer's chat template (instruct models) or use as plain text (base models)."""
    prefill: str
    """Text that the answer is made to start with; part of the prompt, known to the parser."""
    stop: str

    @model_validator(mode="after")
    def _has_slot(self) -> Self:
        for language in ("en", "zh"):
            if "{request}" not in getattr(self, language):
                raise ValueError(f"template.{language} has no {{request}} slot for the user's text")
        return self


class SamplingConfig(Node):
    """Sampling while training; evaluation uses the same settings."""

    temperature: PositiveFloat
    top_p: Share
    max_tokens: Positive


class OptimizerConfig(Node):
    """AdamW with linear warm-up to a constant rate."""

    lr: PositiveFloat
    betas: Annotated[list[float], Field(min_length=2, max_length=2)]
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup_steps: NonNegative
    max_grad_norm: PositiveFloat


class TrackingConfig(Node):
    """wandb runs offline unless WANDB_API_KEY is set."""

    wandb: bool
    project: str
    progress: bool
