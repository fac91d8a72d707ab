"""One frozen, typed config tree. Unknown keys are errors; cross-checks name the fields and the numbers.

The tree is plain pydantic: `launch/` composes YAML into a dict and validates it here. Defaults live in
`conf/`, not here, so that one place shows what a run uses; optional fields are the exception.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lwz_ray.config_algorithm import AlgorithmConfig, CriticConfig, check_critic
from lwz_ray.config_base import Language, Node, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Share
from lwz_ray.config_failures import FailuresConfig
from lwz_ray.config_rewards import (
    COMPONENTS,
    Component,
    FormatRewardConfig,
    FunctionRewardConfig,
    JudgeConfig,
    LengthRewardConfig,
    OnFailure,
    RewardsConfig,
    WatchConfig,
    WritingRewardConfig,
)
from lwz_ray.config_rooms import (
    ActorsConfig,
    ClusterConfig,
    LearnersConfig,
    LoraConfig,
    RepetitionStopConfig,
    WeightsConfig,
)
from lwz_ray.config_stages import CurateConfig, PreferenceConfig
from lwz_ray.staleness import check_no_deadlock

__all__ = [
    "COMPONENTS",
    "ActorsConfig",
    "AlgorithmConfig",
    "ClusterConfig",
    "ColumnsConfig",
    "Component",
    "Config",
    "CriticConfig",
    "CurateConfig",
    "DataConfig",
    "EvalConfig",
    "FailuresConfig",
    "FormatRewardConfig",
    "FunctionRewardConfig",
    "JudgeConfig",
    "LearnersConfig",
    "LengthRewardConfig",
    "LoraConfig",
    "ModelConfig",
    "Node",
    "OnFailure",
    "OptimizerConfig",
    "PreferenceConfig",
    "RepetitionStopConfig",
    "RewardsConfig",
    "RunConfig",
    "SamplingConfig",
    "TemplateConfig",
    "TrackingConfig",
    "WatchConfig",
    "WeightsConfig",
    "WritingRewardConfig",
]


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


class Config(Node):
    """A whole run, resolved."""

    stage: Literal["rl", "train_rm", "curate", "scale", "report"]
    recipe: Literal["degradations"] | None
    """What stage=curate makes."""
    seed: NonNegative
    steps: Positive
    dry_run: bool
    groups_per_step: Positive
    group_size: Positive
    max_staleness: NonNegative
    on_stale: Literal["wait", "drop"]
    run: RunConfig
    model: ModelConfig
    data: DataConfig
    eval: EvalConfig
    template: TemplateConfig
    sampling: SamplingConfig
    actors: ActorsConfig
    rewards: RewardsConfig
    judge: JudgeConfig
    watch: WatchConfig
    preference: PreferenceConfig
    curate: CurateConfig
    algorithm: AlgorithmConfig
    lora: LoraConfig
    optimizer: OptimizerConfig
    critic: CriticConfig
    learners: LearnersConfig
    weights: WeightsConfig
    failures: FailuresConfig
    tracking: TrackingConfig
    cluster: ClusterConfig

    @property
    def samples_per_step(self) -> int:
        return self.groups_per_step * self.group_size

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        if self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size}: GRPO compares samples of one prompt, a group needs at least 2"
            )
        need = self.data.max_prompt_tokens + self.sampling.max_tokens
        if need > self.model.max_length_tokens:
            raise ValueError(
                f"data.max_prompt_tokens={self.data.max_prompt_tokens} + "
                f"sampling.max_tokens={self.sampling.max_tokens} = {need} exceeds "
                f"model.max_length_tokens={self.model.max_length_tokens}: lower one of the first two"
            )
        if self.model.max_length_tokens > self.learners.microbatch_tokens:
            raise ValueError(
                f"learners.microbatch_tokens={self.learners.microbatch_tokens} is below "
                f"model.max_length_tokens={self.model.max_length_tokens}: the longest sample would not fit a microbatch"
            )
        if self.algorithm.minibatches > self.groups_per_step:
            raise ValueError(
                f"algorithm.minibatches={self.algorithm.minibatches} exceeds groups_per_step={self.groups_per_step}"
            )
        if self.learners.device == "cuda" and self.actors.num_gpus < self.actors.tensor_parallel_size:
            raise ValueError(
                f"actors.num_gpus={self.actors.num_gpus:g} is below "
                f"actors.tensor_parallel_size={self.actors.tensor_parallel_size}: each shard needs a GPU"
            )
        if self.algorithm.uses_critic and self.stage == "rl":
            check_critic(self.critic, self.steps, self.learners.device, self.learners.sequence_parallel)
        if self.lora.rank and self.stage == "train_rm":
            raise ValueError(
                f"lora.rank={self.lora.rank} with stage=train_rm: adapters are trained by stage=rl only; use lora=none"
            )
        if self.weights.transport == "nccl" and self.learners.device != "cuda":
            raise ValueError("weights.transport=nccl needs learners.device=cuda; on CPUs use auto, shm or object_store")
        check_no_deadlock(self)
        return self

    @model_validator(mode="after")
    def _scorer_checks(self) -> Self:
        if self.rewards.weights.get("judge", 0.0) > 0 and self.judge.base_url is None:
            raise ValueError("rewards.weights.judge > 0 but judge.base_url is null: name the judge's endpoint")
        if self.judge.base_url is not None and self.judge.mode == "pairwise_group" and self.eval.samples_per_prompt < 2:
            raise ValueError(
                f"judge.mode=pairwise_group compares samples of one prompt, but eval.samples_per_prompt="
                f"{self.eval.samples_per_prompt}: use 2 or more"
            )
        second = self.watch.second_scorer
        if second == "judge" and self.judge.base_url is None:
            raise ValueError("watch.second_scorer=judge but judge.base_url is null: name the judge's endpoint")
        if second == "function" and self.rewards.function.path is None:
            raise ValueError("watch.second_scorer=function but rewards.function.path is null: name a function")
        if second is not None and self.rewards.weights.get(second, 0.0) > 0:
            raise ValueError(
                f"watch.second_scorer={second} has rewards.weights.{second}={self.rewards.weights[second]:g}: a scorer "
                "that steers learning cannot watch it; give it weight 0"
            )
        if self.stage == "curate" and self.recipe is None:
            raise ValueError("stage=curate needs a recipe: recipe=degradations")
        return self
