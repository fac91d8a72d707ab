"""What a learner rank is built from."""

from dataclasses import dataclass, field
from typing import Any

from lwz_ray.config_algorithm import AlgorithmConfig
from lwz_ray.config_rooms import LoraConfig


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """One network, its objective and optimizer, and how it is sharded. Equal on every rank."""

    model_path: str
    trust_remote_code: bool
    device: str
    dtype: str
    """Compute dtype; master weights and reduction are float32."""
    publish_dtype: str
    threads: int
    temperature: float
    logprob_chunk_tokens: int
    activation_checkpointing: bool
    reshard_after_forward: bool
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    warmup_steps: int
    max_grad_norm: float
    bucket_bytes: int
    staging_candidates: tuple[str, ...]
    staging_bytes: int
    """Of one version of the published weights; two are held."""
    timeout_s: float
    """Of every collective and of the rendezvous."""
    seed: int
    objective: str = "policy"
    """policy | language_model | critic | preference: which network is built and what it is trained on."""
    backend: str = "fsdp"
    """fsdp | deepspeed"""
    zero_stage: int = 2
    """DeepSpeed's: 1 | 2 | 3"""
    optimizer: str = "adamw"
    """adamw | sgd; sgd is for checks, where an update must show the gradient's scale."""
    center_coefficient: float = 0.0
    """Preference only: see `lwz_ray.preference_loss.preference_loss`."""
    lr_schedule: str = "constant"
    """After warm-up: constant | linear | cosine; the last two would reach 0 at `total_steps`."""
    total_steps: int = 0
    """Optimizer steps of the whole run, warm-up included; the falling schedules need it. Later steps keep the last
    one's rate: where a token budget ends the run, their number is not known exactly."""

    algorithm: AlgorithmConfig | None = None
    """Policy and critic only."""
    value_clip: float | None = None
    """Critic only: see `CriticConfig`."""
    sources: tuple[str, ...] = ()
    """Language model only: names of the data sources by index, whose losses are reported apart."""
    lora: LoraConfig | None = None
    """None: every weight is trained."""
    cpu_offload: bool = False
    """Master weights, gradients and optimizer states live in host memory, and FSDP's and ZeRO-3's weights."""
    sequence_parallel: int = 1
    """Ranks that share one packed row; neighbours in rank."""
    attention: str = "sdpa"
    """sdpa | varlen"""
    liger: bool = False
    deepspeed_config: dict[str, Any] = field(default_factory=dict)
    """The content of the user's file, merged over what `learners.deepspeed` generates."""

    def __post_init__(self) -> None:
        if self.lr_schedule != "constant" and self.total_steps < 1:
            raise ValueError(f"lr_schedule={self.lr_schedule} needs total_steps, got {self.total_steps}")
