"""The Ray actor of this room: constructs a classifier and forwards calls."""

import os
from collections.abc import Sequence
from typing import Any

import psutil
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError

from lwz_ray.config import WritingRewardConfig
from rewards.classifier import load_classifier
from rewards.pairs import ClassifierScores
from rewards.pool_queue import Replica, ReplicaLostError

Process = tuple[int, float]
"""(pid, when it was created), which together name a process of a host for ever."""


@ray.remote(concurrency_groups={"heartbeat": 1})  # pyright: ignore[reportCallIssue] - not in ray's overloads
class RewardWorker:
    """One replica of the reward model; resources come from `.options(num_cpus=…, num_gpus=…)`.

    Batches are scored one after the other; signs of life are given beside them, in a thread of their own.
    """

    def __init__(self, config: WritingRewardConfig, threads: int, num_gpus: int) -> None:
        self._classifier = load_classifier(config, threads, num_gpus)

    def ready(self) -> bool:
        """Answer once the model is loaded; a failed load raises here."""
        return True

    @ray.method(concurrency_group="heartbeat")
    def heartbeat(self) -> int:
        """Return this process's id, also while a batch is scored: a frozen process gives none."""
        return os.getpid()

    def whereabouts(self) -> tuple[str, list[Process]]:
        """Return this host's node id and this process with everything below it."""
        own = psutil.Process()
        processes = [(p.pid, p.create_time()) for p in [own, *own.children(recursive=True)]]
        return ray.get_runtime_context().get_node_id(), processes

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        return self._classifier.score(prompts, texts)

    def close(self) -> None:
        """End the engine before the Ray actor is killed: a killed one leaves vLLM's child process to itself."""
        self._classifier.close()


@ray.remote(num_cpus=0, max_retries=0)
def end_processes(processes: Sequence[Process]) -> list[int]:
    """Kill those that still run on this host, frozen ones too; return their ids. To be run on the processes' node."""
    killed = []
    for pid, created in processes:
        try:
            found = psutil.Process(pid)
            if found.create_time() == created:
                found.kill()
                killed.append(pid)
        except psutil.NoSuchProcess:
            continue
    return killed


def as_replica(worker: Any) -> Replica:
    """Wrap a `RewardWorker` handle for `RewardPool`; raises ReplicaLostError once its process is gone."""

    async def score(prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        try:
            return await worker.score.remote(prompts, texts)
        except (ActorDiedError, OutOfMemoryError) as error:  # the latter where Ray killed it to free memory
            raise ReplicaLostError("its process died") from error

    return score
