"""Config of the rooms: what runs on Ray and how it is sized."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lwz_ray.config_base import (
    Node,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    check_replicas,
    check_resources,
)


class RepetitionStopConfig(Node):
    """End a rollout that loops: the last tokens are one pattern, repeated. Thresholds are ours."""

    enabled: bool
    max_pattern_tokens: Positive
    """Longest unit that is looked for, in tokens."""
    min_repeats: Annotated[int, Field(ge=2)]
    """How often the unit must follow itself."""
    min_looping_tokens: Positive
    """And how many tokens those repeats must cover, so that a short refrain does not end a text."""
    check_every_tokens: Positive


class ActorsConfig(Node):
    """Rollout Ray actors, each owning one engine."""

    replicas: Positive
    """At the start; stage=scale changes it while the run goes on."""
    min_replicas: Positive
    max_replicas: Positive | None
    """null: as many as the cluster has room for."""
    resources: dict[str, PositiveFloat]
    """Ray's custom resources of one replica, which bind it to nodes that offer them."""
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
    repetition_stop: RepetitionStopConfig
    order: Literal["longest_first", "first_come"]
    """Among the requests of a round: by the length that the prompt asks for, or as they were made."""
    routing: Literal["most_free_cache", "round_robin"]
    """Which engine a group is given to."""
    concurrency: Literal["cache", "fixed"]
    """cache: as many sequences as the KV cache takes without preemption; fixed: max_num_seqs an engine."""
    cache_target: Share
    """Share of the KV cache that may be in use before new groups wait."""
    sample_deadline_s: PositiveFloat | None
    """A sample that is not done by then is cut and scored as it is; null: never."""
    start_timeout_s: PositiveFloat
    request_timeout_s: PositiveFloat

    @model_validator(mode="after")
    def _replicas_in_bounds(self) -> Self:
        check_replicas("actors", self.replicas, self.min_replicas, self.max_replicas)
        check_resources("actors", self.resources)
        return self


class LearnersConfig(Node):
    """The learner group: `ranks` Ray actors that train one model."""

    backend: Literal["fsdp", "deepspeed"]
    zero_stage: Literal[1, 2, 3]
    """DeepSpeed only: what is sharded (optimizer states; gradients too; parameters too)."""
    ranks: Positive
    resources: dict[str, PositiveFloat]
    """Ray's custom resources of one rank, of learners and critic, which bind it to nodes that offer them."""
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
    cpu_offload: bool
    """Keep master weights, gradients and moments in host memory."""
    sequence_parallel: Positive
    """Ranks that share one packed row; the rows are spread over ranks / sequence_parallel."""
    attention: Literal["sdpa", "varlen"]
    """varlen: one variable-length kernel a layer, on GPUs."""
    attention_cost: NonNegativeFloat | None
    """Cost of one query-key pair in units of one token's other work; null: from the model's shape."""
    liger: bool
    """Liger's fused kernels, on GPUs."""
    deepspeed_config: str | None
    """DeepSpeed only: a JSON file in DeepSpeed's own words, merged over the config that is generated."""
    start_timeout_s: PositiveFloat
    step_timeout_s: PositiveFloat

    @model_validator(mode="after")
    def _checks(self) -> Self:
        check_resources("learners", self.resources)
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                f"learners.ranks={self.ranks} is no multiple of learners.sequence_parallel={self.sequence_parallel}"
            )
        if self.deepspeed_config is not None and self.backend != "deepspeed":
            raise ValueError(
                f"learners.deepspeed_config={self.deepspeed_config} but learners.backend=fsdp: "
                "choose learners=deepspeed"
            )
        for key, value in (("attention=varlen", self.attention == "varlen"), ("liger=true", self.liger)):
            if value and self.device != "cuda":
                raise ValueError(f"learners.{key} needs learners.device=cuda; leave it out on CPUs")
        if self.attention == "varlen" and self.dtype != "bfloat16":
            raise ValueError(
                f"learners.attention=varlen with learners.dtype={self.dtype}: its kernel knows half precision only; "
                "use learners.dtype=bfloat16, or learners.attention=sdpa"
            )
        return self


class LoraConfig(Node):
    """Low-rank adapters (arXiv 2106.09685): only they are trained, published and checkpointed."""

    rank: NonNegative
    """0: no adapters, every weight is trained."""
    alpha: PositiveFloat
    """An adapter's product is scaled by alpha / rank."""
    target_modules: Annotated[list[str], Field(min_length=1)]
    """Names of the linear layers that get an adapter."""


class WeightsConfig(Node):
    """How new weights reach the rollout actors."""

    transport: Literal["auto", "shm", "object_store", "nccl"]
    """auto: nccl on GPUs, else for each engine shm on the host of learner rank 0 and object_store elsewhere."""
    mode: Literal["keep", "abort", "wait"]
    """What becomes of samples that are being written: kept, interrupted and taken up again anywhere, or waited for."""
    clear_cache: bool
    """Compute kept samples' KV cache anew with the new weights."""
    bucket_mib: Positive
    staging_dir: str
    timeout_s: PositiveFloat


class ClusterConfig(Node):
    """The Ray cluster: `local` starts one in this process, `auto` joins a running one."""

    address: str
    num_cpus: Positive | None
    start_timeout_s: PositiveFloat
    nodes: Positive | None
    """Of `gpus_per_node` GPUs each; a cluster that is joined is waited for until it has as many. Null: not known."""
    gpus_per_node: NonNegative
    """For the plan of `dry_run`, and to tell which nodes count for `nodes`."""
    gpu_memory_gib: PositiveFloat | None
    """For the plan of `dry_run`; null where there is no GPU."""
