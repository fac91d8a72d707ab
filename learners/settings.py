"""What a learner rank is built from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """One policy, its optimizer, and how it is sharded. Equal on every rank."""

    model_path: str
    trust_remote_code: bool
    device: str
    dtype: str
    """Compute dtype; master weights and reduction are float32."""
    publish_dtype: str
    threads: int
    temperature: float
    clip_epsilon: float
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
    timeout_s: float
    """Of every collective and of the rendezvous."""
    seed: int
