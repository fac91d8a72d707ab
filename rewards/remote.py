"""The Ray actor of this room: constructs a classifier and forwards calls."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError

from lwz_ray.config import WritingRewardConfig
from rewards.classifier import load_classifier
from rewards.pairs import ClassifierScores
from rewards.pool_queue import Replica, ReplicaLostError


@ray.remote
class RewardWorker:
    """One replica of the reward model; resources come from `.options(num_cpus=…, num_gpus=…)`."""

    def __init__(self, config: WritingRewardConfig, threads: int, num_gpus: int) -> None:
        self._classifier = load_classifier(config, threads, num_gpus)

    def ready(self) -> bool:
        """Answer once the model is loaded; a failed load raises here."""
        return True

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        return self._classifier.score(prompts, texts)

    def close(self) -> None:
        """End the engine before the Ray actor is killed: a killed one leaves vLLM's child process to itself."""
        self._classifier.close()


def as_replica(worker: Any) -> Replica:
    """Wrap a `RewardWorker` handle for `RewardPool`; raises ReplicaLostError once its process is gone."""

    async def score(prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        try:
            return await worker.score.remote(prompts, texts)
        except ActorDiedError as error:
            raise ReplicaLostError("its process died") from error

    return score
