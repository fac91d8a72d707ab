"""One frozen, typed config tree. Unknown keys are errors; cross-checks name the fields and the numbers.

The tree is plain pydantic: `launch/` composes YAML into a dict and validates it here. Defaults live in
`conf/`, not here, so that one place shows what a run uses; optional fields are the exception.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Language = Literal["en", "zh"]


class Node(BaseModel):
    """A frozen config node that refuses unknown keys and silent type changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class RunConfig(Node):
    """Where a run lives and how it continues."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    dir: str
    """Parent of the run folder; absolute in a submitted Ray job."""
    resume: Literal["never", "auto"]
    checkpoint_every_steps: Positive
    keep_checkpoints: Positive
    git_revision: str | None = None
    """Passed in where the code travels without `.git` (a submitted job)."""


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


class ActorsConfig(Node):
    """Rollout Ray actors, each owning one engine."""

    replicas: Positive
    tensor_parallel_size: Positive
    num_cpus: PositiveFloat
    num_gpus: NonNegativeFloat
    """Per replica; at least tensor_parallel_size on GPUs, 0 on CPUs."""
    threads: Positive
    max_num_seqs: Positive
    kv_cache_mib: Positive | None
    """KV cache of one engine; null lets `memory_utilization` decide."""
    memory_utilization: Share
    dtype: Literal["bfloat16", "float16", "float32"]
    enforce_eager: bool
    start_timeout_s: PositiveFloat
    request_timeout_s: PositiveFloat


class LengthRewardConfig(Node):
    """The paper's length reward; the rule for L_max is ours."""

    l_max_factor: Annotated[float, Field(ge=1)]
    """L_max = factor * L_upper (at least L_upper + 1)."""
    on_missing_range: Literal["error", "drop", "abstain"]
    """For a request with no range in the data and none in its words."""


class FormatRewardConfig(Node):
    """Structure plus a penalty for repeated content; thresholds are ours (the paper leaves them open)."""

    partial_credit: bool
    """Graded structure (a base model must find the tags) instead of all or nothing."""
    repetition_ngram: Positive
    """Words (CJK: characters) per n-gram of the repetition measure."""
    repetition_free: Annotated[float, Field(ge=0, lt=1)]
    """Share of repeated n-grams that costs nothing."""


class WritingRewardConfig(Node):
    """A Hugging Face sequence-classification folder with one output, served by the reward pool."""

    path: str | None
    """null: no writing reward."""
    engine: Literal["transformers", "vllm"]
    max_length_tokens: Positive
    batch_size: Positive
    dtype: Literal["bfloat16", "float32"]
    kv_cache_mib: Positive
    memory_utilization: Share


class RewardsConfig(Node):
    """Reward components, their weights, and the pool of reward-model Ray actors."""

    replicas: Positive
    num_cpus: PositiveFloat
    num_gpus: NonNegativeFloat
    threads: Positive
    weights: dict[Literal["length", "writing", "format"], NonNegativeFloat]
    """0: measured and logged, never in the advantage."""
    length: LengthRewardConfig
    format: FormatRewardConfig
    writing: WritingRewardConfig
    start_timeout_s: PositiveFloat
    request_timeout_s: PositiveFloat

    @property
    def active(self) -> tuple[str, ...]:
        """Components that steer learning, in a fixed order."""
        return tuple(k for k in ("length", "writing", "format") if self.weights.get(k, 0.0) > 0)

    @model_validator(mode="after")
    def _some_reward(self) -> Self:
        if not self.active:
            raise ValueError(f"rewards.weights={self.weights}: every weight is 0, nothing to learn from")
        if self.weights.get("writing", 0.0) > 0 and self.writing.path is None:
            raise ValueError("rewards.weights.writing > 0 but rewards.writing.path is null: name a model folder")
        return self


class AlgorithmConfig(Node):
    """The policy-gradient objective."""

    name: Literal["grpo"]
    clip_epsilon: Share
    advantage: Literal["mean_of_normalised", "normalise_sum", "normalise_sum_batch"]
    loss_aggregation: Literal["sequence_mean", "token_mean"]
    minibatches: Positive
    """Optimizer steps a batch is cut into."""
    truncated: Literal["train", "mask"]
    """Samples cut by the token limit: trained like others, or masked out of the loss."""
    kl_coefficient: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _no_kl(self) -> Self:
        if self.kl_coefficient != 0:
            raise ValueError(
                f"algorithm.kl_coefficient={self.kl_coefficient}: a KL term needs a reference model, which this "
                "version does not have; use 0 (the paper's value)"
            )
        return self


class OptimizerConfig(Node):
    """AdamW with linear warm-up to a constant rate."""

    lr: PositiveFloat
    betas: Annotated[list[float], Field(min_length=2, max_length=2)]
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup_steps: NonNegative
    max_grad_norm: PositiveFloat


class LearnersConfig(Node):
    """The learner group: `ranks` Ray actors that train one policy."""

    backend: Literal["fsdp"]
    ranks: Positive
    num_cpus: PositiveFloat
    num_gpus: NonNegativeFloat
    threads: Positive
    device: Literal["cpu", "cuda"]
    dtype: Literal["bfloat16", "float32"]
    """Compute dtype; master weights and gradient reduction are float32."""
    microbatch_tokens: Positive
    logprob_chunk_tokens: Positive
    activation_checkpointing: bool
    reshard_after_forward: bool
    start_timeout_s: PositiveFloat
    step_timeout_s: PositiveFloat


class WeightsConfig(Node):
    """How new weights reach the rollout actors."""

    mode: Literal["auto", "shm", "object_store", "nccl"]
    """auto: shm where learner and rollout actors share a host, nccl on GPUs, else object_store."""
    bucket_mib: Positive
    staging_dir: str
    timeout_s: PositiveFloat


class FailuresConfig(Node):
    """Caps on what may go wrong before the run fails."""

    max_consecutive_skipped_steps: Positive
    max_consecutive_dropped_groups: Positive


class TrackingConfig(Node):
    """wandb runs offline unless WANDB_API_KEY is set."""

    wandb: bool
    project: str
    progress: bool


class ClusterConfig(Node):
    """The Ray cluster: `local` starts one in this process, `auto` joins a running one."""

    address: str
    num_cpus: Positive | None
    start_timeout_s: PositiveFloat
    nodes: Positive | None
    """For the plan of `dry_run`; null: not known."""
    gpus_per_node: NonNegative
    gpu_memory_gib: PositiveFloat | None
    """For the plan of `dry_run`; null where there is no GPU."""


class Config(Node):
    """A whole run, resolved."""

    stage: Literal["rl", "report"]
    seed: NonNegative
    steps: Positive
    dry_run: bool
    groups_per_step: Positive
    group_size: Positive
    max_staleness: NonNegative
    on_stale: Literal["drop", "train"]
    run: RunConfig
    model: ModelConfig
    data: DataConfig
    eval: EvalConfig
    template: TemplateConfig
    sampling: SamplingConfig
    actors: ActorsConfig
    rewards: RewardsConfig
    algorithm: AlgorithmConfig
    optimizer: OptimizerConfig
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
                f"data.max_prompt_tokens={self.data.max_prompt_tokens} + sampling.max_tokens={self.sampling.max_tokens} "
                f"= {need} exceeds model.max_length_tokens={self.model.max_length_tokens}: lower one of the first two"
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
        if self.weights.mode == "nccl" and self.learners.device != "cuda":
            raise ValueError("weights.mode=nccl needs learners.device=cuda; on CPUs use auto, shm or object_store")
        return self
