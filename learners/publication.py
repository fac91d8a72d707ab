"""The sending side of weights on one learner rank: buckets for staging or the object store, or vLLM's NCCL group."""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from learners.backend import Backend
from learners.lora import adapter_bytes, published_weights
from learners.models import TORCH_DTYPES
from learners.settings import LearnerSettings
from lwz_ray.errors import InfrastructureError
from lwz_ray.staging import StagedVersions, StagedWeights
from lwz_ray.weights import Bucket, pack_buckets

if TYPE_CHECKING:
    from learners.vllm_nccl import NcclSender


class Publication:
    """Publishes a backend's weights. Every rank makes the same calls: gathering is a collective."""

    def __init__(self, settings: LearnerSettings, backend: Backend) -> None:
        self._settings, self._backend = settings, backend
        self._dtype = TORCH_DTYPES[settings.publish_dtype]
        self._staged: StagedVersions | None = None
        self._sender: NcclSender | None = None

    def buckets(self, policy_version: int) -> Iterator[Bucket]:
        """Yield the weights in buckets on the sender; other ranks yield nothing but take part."""
        weights = published_weights(self._backend, self._settings, self._dtype)
        if self._backend.is_sender:
            yield from pack_buckets(weights, policy_version, self._settings.bucket_bytes)
        else:
            deque(weights, maxlen=0)  # each is dropped before the next is gathered

    def stage_weights(self, policy_version: int) -> StagedWeights:
        """Stage the weights on the sender's host, where they stay until a later version is staged and loaded.

        Raises InfrastructureError on the sender where they cannot be written.
        """
        buckets = self.buckets(policy_version)
        if not self._backend.is_sender:
            deque(buckets, maxlen=0)
            return StagedWeights(policy_version, (), 0)
        try:
            if self._staged is None:
                self._staged = StagedVersions(self._settings.staging_candidates, self._version_bytes())
            return self._staged.stage(policy_version, buckets)
        except InfrastructureError:
            deque(buckets, maxlen=0)  # the other ranks are still gathering
            raise

    def _version_bytes(self) -> int:
        """Return what one version takes on the host; adapters alone are far less than the model."""
        if self._settings.lora is None:
            return self._settings.staging_bytes
        return adapter_bytes(self._backend)

    def drop_older_staged(self) -> None:
        """Delete what is staged of versions before the newest; may be called beside training and staging."""
        if self._staged is not None:
            self._staged.drop_older()

    def open_nccl(self, client: Any, host: str, port: int, size: int) -> None:
        """Join the transfer group of rank 0 and the engines' workers, after leaving the last one.

        vLLM is needed only here.
        """
        from learners.vllm_nccl import NcclSender

        if self._sender is not None:
            self._sender.close()
        self._sender = NcclSender(self._backend, self._settings, self._dtype, client, host, port, size)

    def send_nccl(self, policy_version: int) -> None:
        """Broadcast the weights to the engines."""
        if self._sender is None:
            raise RuntimeError("send_nccl before open_nccl")
        self._sender.send(policy_version)

    def close(self) -> None:
        if self._staged is not None:
            self._staged.remove()
