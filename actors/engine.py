"""What a rollout worker needs of an engine, and the settings every engine takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from actors.load import EngineLoad
from actors.repetition_stop import RepetitionRule
from actors.streams import CompletionStream, PieceStream
from actors.tasks import WorkerRequest
from lwz_ray.errors import InfrastructureError

UpdateMode = Literal["keep", "abort", "wait"]


class DirtyEngineError(InfrastructureError):
    """A weight update failed half-way: the engine serves nothing until a full update succeeds."""


class EngineLostError(InfrastructureError):
    """The engine's process is gone, and with it what it was writing."""


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
    """Any number: replicas beyond the host's cores share them."""
    repetition_stop: RepetitionRule | None = None
    """When a looping sample is ended with finish reason `repetition`; None: never."""
    update_mode: UpdateMode = "keep"
    """What an update does to samples in flight: they go on after it, end with what they have, or are waited for."""
    clear_cache: bool = False
    """Compute the KV cache of kept samples anew with the new weights."""


class Engine(Protocol):
    """Generates with one set of weights, which can be replaced while requests are in flight.

    Once the engine's process is gone, every call and every open stream raises EngineLostError.
    """

    settings: EngineSettings
    policy_version: int

    async def start(self) -> None: ...

    def stream(self, request: WorkerRequest, request_id: str) -> CompletionStream:
        """Yield (sample_index, completion) as each ends; closing early ends what is still being written.

        A task with a prior is gone on with, and comes back whole: its tokens, logprobs, version spans and text. At a
        task's deadline it ends with finish reason `abort`.
        """
        ...

    def pieces(self, request: WorkerRequest, request_id: str) -> PieceStream:
        """Yield the text of the request's only task as it is written, then its completion, the same as `stream`'s."""
        ...

    async def pause(self) -> None:
        """Stop scheduling. Requests in flight stay, are interrupted or are waited for, as `update_mode` says."""
        ...

    async def resume(self) -> None: ...

    async def interrupt(self) -> None:
        """End every sample in flight with what it has, finish reason `abort`; later requests are not touched."""
        ...

    async def load_weights(self, policy_version: int, header_paths: Sequence[str]) -> None:
        """Load a full set of staged buckets while paused; on failure the engine must not serve."""
        ...

    async def load(self) -> EngineLoad:
        """Return the engine's numbers through its main loop; one that is frozen does not answer."""
        ...

    async def close(self) -> None: ...
