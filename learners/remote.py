"""Ray actors of the training side: thin shells. The only file of this room that imports ray."""

import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray

from learners.backend import Backend
from learners.rendezvous import Rendezvous
from learners.settings import LearnerSettings
from learners.trainer import Trainer
from lwz_ray.packing import Microbatch
from lwz_ray.preferences import PairBatch
from lwz_ray.records import StepResult
from lwz_ray.weights import Bucket


@ray.remote(concurrency_groups={"checkpoint": 1})  # pyright: ignore[reportCallIssue] - not in ray's overloads
class LearnerActor:
    """One learner rank. Its calls run one after the other; a checkpoint is waited for in a thread beside them."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._trainer: Trainer | None = None
        self._rendezvous: Rendezvous | None = None

    def rendezvous(self) -> str:
        """Open the store in which the ranks of the group meet, on this host; return its address."""
        self._rendezvous = Rendezvous(ray.util.get_node_ip_address(), self._settings.timeout_s)
        return self._rendezvous.address

    def free_address(self) -> tuple[str, int]:
        """Return this host and a port of it that was free a moment ago, for an engine that listens by itself."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    def start(self, rank: int, world_size: int, address: str) -> str:
        """Join the group that meets at address and build the shard; return this host's node id."""
        backend = _open_backend(self._settings, rank, world_size, address)
        self._trainer = Trainer(self._settings, backend)
        return ray.get_runtime_context().get_node_id()

    @property
    def trainer(self) -> Trainer:
        if self._trainer is None:
            raise RuntimeError("this learner rank was not started")
        return self._trainer

    def train(self, minibatches: list[list[Any]]) -> StepResult:
        return self.trainer.train(minibatches)

    def predict(self, microbatches: list[PairBatch]) -> list[np.ndarray]:
        return self.trainer.predict(microbatches)

    def annotate(self, microbatches: list[Microbatch]) -> list[dict[str, np.ndarray]]:
        return self.trainer.annotate(microbatches)

    def refresh_reference(self) -> None:
        self.trainer.refresh_reference()

    def stage_weights(self, policy_version: int) -> list[str]:
        return self.trainer.publication.stage_weights(policy_version)

    def stream_buckets(self, policy_version: int) -> Iterator[Bucket]:
        """Call with num_returns="streaming": each bucket goes to the object store as it is ready."""
        yield from self.trainer.publication.stream_buckets(policy_version)

    def open_nccl(self, client: Any, host: str, port: int, size: int) -> None:
        self.trainer.publication.open_nccl(client, host, port, size)

    def send_nccl(self, policy_version: int) -> None:
        self.trainer.publication.send_nccl(policy_version)

    def clear_staged(self) -> None:
        self.trainer.publication.clear_staged()

    def save(self, folder: str) -> None:
        self.trainer.save(folder)

    @ray.method(concurrency_group="checkpoint")
    def finish_save(self) -> None:
        self.trainer.finish_save()

    def load(self, folder: str) -> None:
        self.trainer.load(folder)

    def export(self, folder: str) -> None:
        self.trainer.export(folder)

    def close(self) -> None:
        if self._trainer is not None:
            self._trainer.close()


def _open_backend(settings: LearnerSettings, rank: int, world_size: int, address: str) -> Backend:
    """Only the chosen backend is imported: DeepSpeed may not be installed."""
    if settings.backend == "deepspeed":
        from learners.deepspeed import DeepSpeedBackend

        return DeepSpeedBackend(settings, rank, world_size, address)
    from learners.fsdp import FsdpBackend

    return FsdpBackend(settings, rank, world_size, address)
