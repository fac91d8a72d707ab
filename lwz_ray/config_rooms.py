"""Config of the rooms: what runs on Ray and how it is sized."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lwz_ray.config_base import Node, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Share


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
