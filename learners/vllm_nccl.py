"""The sending side of weight transfer on GPUs: vLLM's own trainer engine, fed from our shards.

Everything that touches NCCL is vLLM's; here is only what names our weights. Imported lazily: CPU learners need no vLLM.
"""

from collections.abc import Iterator
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

from learners.backend import Backend
from learners.lora import merged_shapes, merged_weights
from learners.settings import LearnerSettings


class ShardSource(WeightSource):
    """Streams a backend's weights, adapters merged, one whole tensor at a time; every rank iterates in step."""

    def __init__(self, backend: Backend, settings: LearnerSettings, dtype: torch.dtype) -> None:
        self._backend = backend
        self._settings = settings
        self._dtype = dtype

    def metadata(self) -> list[ParamMeta]:
        """Return name, wire dtype and whole shape of every parameter, without a transfer."""
        return [ParamMeta(name, self._dtype, shape) for name, shape in merged_shapes(self._backend)]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return merged_weights(self._backend, self._settings, self._dtype)


class NcclSender:
    """One learner rank's end of the transfer group; rank 0 broadcasts, the others help to gather."""

    def __init__(
        self,
        backend: Backend,
        settings: LearnerSettings,
        dtype: torch.dtype,
        client: Any,
        host: str,
        port: int,
        size: int,
    ) -> None:
        """client: vLLM's VLLMWeightSyncClient with a `policy_version`; size: of the group, rank 0 and all workers."""
        self._client = client
        info = NCCLTrainerInitInfo(master_address=host, master_port=port, world_size=size, rank=backend.rank)
        self._engine = NCCLTrainerWeightTransferEngine.trainer_init(
            info, client=client, source=ShardSource(backend, settings, dtype)
        )

    def send(self, policy_version: int) -> None:
        """Publish the present weights as this version."""
        self._client.policy_version = policy_version
        self._engine.send_weights()

    def close(self) -> None:
        """Leave the group."""
        self._engine.shutdown()
