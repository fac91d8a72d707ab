"""The sending side of weights on one learner rank: buckets for staging or the object store, or vLLM's NCCL group."""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from learners.backend import Backend
from learners.lora import published_weights
from learners.models import TORCH_DTYPES
from learners.settings import LearnerSettings
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import Bucket, pack_buckets

if TYPE_CHECKING:
    from learners.vllm_nccl import NcclSender


class Publication:
    """Publishes a backend's weights. Every rank makes the same calls: gathering is a collective."""

    def __init__(self, settings: LearnerSettings, backend: Backend) -> None:
        self._settings, self._backend = settings, backend
        self._dtype = TORCH_DTYPES[settings.publish_dtype]
        self._staging: StagingFolder | None = None
        self._sender: NcclSender | None = None

    def stream_buckets(self, policy_version: int) -> Iterator[Bucket]:
        """Yield the weights in buckets on the sender; other ranks yield nothing but take part."""
        weights = published_weights(self._backend, self._settings, self._dtype)
        if self._backend.is_sender:
            yield from pack_buckets(weights, policy_version, self._settings.bucket_bytes)
        else:
            deque(weights, maxlen=0)  # each is dropped before the next is gathered

    def stage_weights(self, policy_version: int) -> list[str]:
        """Stage the weights on this host; return the header paths on the sender, nothing elsewhere."""
        if self._backend.is_sender and self._staging is None:
            self._staging = StagingFolder(self._settings.staging_candidates, self._settings.staging_bytes)
        paths = []
        for bucket in self.stream_buckets(policy_version):
            assert self._staging is not None
            paths.append(self._staging.write(bucket))
            del bucket  # before the next is filled
        return paths

    def clear_staged(self) -> None:
        """Delete the staged files of the last publication."""
        if self._staging is not None:
            self._staging.clear()

    def open_nccl(self, client: Any, host: str, port: int, size: int) -> None:
        """Join the transfer group of rank 0 and the engines' workers; vLLM is needed only here."""
        from learners.vllm_nccl import NcclSender

        self._sender = NcclSender(self._backend, self._settings, self._dtype, client, host, port, size)

    def send_nccl(self, policy_version: int) -> None:
        """Broadcast the weights to the engines."""
        if self._sender is None:
            raise RuntimeError("send_nccl before open_nccl")
        self._sender.send(policy_version)

    def close(self) -> None:
        if self._staging is not None:
            self._staging.remove()
