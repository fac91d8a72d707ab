"""What a rollout worker needs of an engine, and the settings every engine takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.repetition_stop import RepetitionRule
from actors.streams import CompletionStream
from lwz_ray.errors import InfrastructureError
from lwz_ray.records import RolloutRequest


class DirtyEngineError(InfrastructureError):
    """A weight update failed half-way: the engine serves nothing until a full update succeeds."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How one engine is built and samples."""

    model_path: str
    dtype: str
    max_length_tokens: int
    max_num_seqs: int
    temperature: float
    top_p: float
    max_tokens: int
    stop: str
    tensor_parallel_size: int = 1
    kv_cache_mib: int | None = None
    memory_utilization: float = 0.9
    enforce_eager: bool = False
    trust_remote_code: bool = False
    seed: int = 0
    weight_transfer: str = "staged"
    """vLLM weight-transfer backend: `staged` (ours, files on the host) or `nccl`."""
    threads: int = 1
    replica_index: int = 0
    repetition_stop: RepetitionRule | None = None
    """When a looping sample is ended with finish reason `repetition`; None: never."""


class Engine(Protocol):
    """Generates with one set of weights, which can be replaced while requests are in flight."""

    policy_version: int

    async def start(self) -> None: ...

    def stream(self, request: RolloutRequest, request_id: str) -> CompletionStream:
        """Yield (sample_index, completion) as each ends; closing early ends what is still being written."""
        ...

    async def pause(self) -> None:
        """Stop scheduling; requests in flight stay and go on after `resume`."""
        ...

    async def resume(self) -> None: ...

    async def load_weights(self, policy_version: int, header_paths: Sequence[str]) -> None:
        """Load a full set of staged buckets while paused; on failure the engine must not serve."""
        ...

    async def close(self) -> None: ...
