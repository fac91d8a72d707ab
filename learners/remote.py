"""Ray actors of the training side: thin shells. The only file of this room that imports ray."""

import os
import socket
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
from lwz_ray.staging import StagedWeights, read_bucket
from lwz_ray.weights import Bucket

BESIDE = {"checkpoint": 1, "weights": 4, "heartbeat": 1}
"""Threads for what must not wait behind training, by concurrency group."""


@ray.remote(concurrency_groups=BESIDE)  # pyright: ignore[reportCallIssue] - not in ray's overloads
class LearnerActor:
    """One learner rank. What touches the model runs one call after the other, in one thread.

    Beside it, in threads of their own: a checkpoint is waited for, staged weights are read, and signs of life given.
    """

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._steps_when_sent = -1
        self._trainer: Trainer | None = None
        self._rendezvous: Rendezvous | None = None

    def rendezvous(self) -> str:
        """Open the store in which the ranks of the group meet, on this host; return its address."""
        self._rendezvous = Rendezvous(ray.util.get_node_ip_address(), self._settings.timeout_s)
        return self._rendezvous.address

    @ray.method(concurrency_group="weights")
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

    @ray.method(concurrency_group="heartbeat")
    def heartbeat(self) -> int:
        """Return this process's id, whatever else it is doing: a frozen process gives none."""
        return os.getpid()

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

    def stage_weights(self, policy_version: int) -> StagedWeights:
        return self.trainer.publication.stage_weights(policy_version)

    @ray.method(concurrency_group="weights")
    def staged_bucket(self, header_path: str) -> Bucket:
        """Read one of the buckets that `stage_weights` named, also while the rank trains."""
        return read_bucket(header_path)

    @ray.method(concurrency_group="weights")
    def drop_older_staged(self) -> None:
        self.trainer.publication.drop_older_staged()

    def open_nccl(self, client: Any, host: str, port: int, size: int) -> None:
        self.trainer.publication.open_nccl(client, host, port, size)

    def send_nccl(self, policy_version: int, only_unchanged: bool = False) -> bool:
        """Broadcast the weights; with `only_unchanged` not where they are others than those sent last.

        Return whether they were sent. Every rank answers alike.
        """
        steps = self.trainer.optimizer_steps
        if only_unchanged and steps != self._steps_when_sent:
            return False
        self.trainer.publication.send_nccl(policy_version)
        self._steps_when_sent = steps
        return True

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
