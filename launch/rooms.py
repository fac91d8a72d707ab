"""Building the rooms on Ray: actors, rewards and learners in the run's placement groups, all started at once."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.pool import RolloutPool
from actors.streams import StreamCall
from launch.cluster import Reservation, actor_options, reserve
from launch.control_actor import Control
from launch.learner_room import LearnerRoom, critic_settings, learner_settings
from launch.learning import LearningSide
from launch.nccl_sync import NcclWeightSync
from launch.places import Places
from launch.preflight_disk import STAGING_FALLBACK
from launch.reward_replicas import RewardReplicas
from launch.rollout_replicas import RolloutReplicas, uses_nccl
from launch.scorers import Scorers
from launch.weight_sync import StagedWeightSync
from learners.group import LearnerGroup
from learners.settings import LearnerSettings
from lwz_ray.config import Config, CriticConfig, LearnersConfig
from lwz_ray.failures import FailureLog, budgets_of
from rewards.pool import RewardPool


class Rooms:
    """The running rooms of the config's stage. `start` builds them, `close` takes them down, nothing half done."""

    rollouts: RolloutPool
    rollout_replicas: RolloutReplicas
    reward_replicas: RewardReplicas
    learner: LearnerGroup
    critic: LearnerGroup | None = None
    """With algorithm.advantage=gae only."""
    weights: StagedWeightSync | NcclWeightSync

    def __init__(
        self,
        config: Config,
        model_bytes: int,
        warn: Callable[[str, str], None] = lambda source, message: None,
        failures: FailureLog | None = None,
    ) -> None:
        """model_bytes: of the published weights, for staging. warn(source, message): told of what goes wrong later.

        failures: counts what is lost; None: a log of its own, which warns and ends nothing.
        """
        self._config = config
        self._model_bytes = model_bytes
        self._warn = warn
        self.failures = FailureLog(budgets_of(config.failures), warn) if failures is None else failures
        self._reservation: Reservation | None = None
        self.learning: LearningSide | None = None
        """The learner groups, in stages that train."""
        self.scorers: Scorers | None = None

    async def start(self) -> None:
        """Reserve, construct and start every room. Raises UserError, WaitTimeoutError or the room's own error."""
        self._reservation = await reserve(self._config)
        places = Places(self._config, self._reservation)
        self.rollout_replicas = RolloutReplicas(self._config, self._model_bytes, places, self.failures, self._warn)
        self.reward_replicas = RewardReplicas(self._config, places, self.failures, self._warn)
        self.rollouts = self.rollout_replicas.pool
        self.rollout_replicas.begin()
        self.reward_replicas.begin()
        self._begin_learning()
        learning = [] if self.learning is None else [self.learning.start()]
        await asyncio.gather(self.rollout_replicas.replicas.start(), self.reward_replicas.replicas.start(), *learning)
        await self.reward_replicas.open()
        if self.learning is not None:
            self.learner, self.critic = self.learning.learner, self.learning.critic
        if self._config.stage == "rl":
            self.scorers = Scorers(self._config, self.reward_pool)
            self.weights = self._weight_sync()
            await self.rollout_replicas.open(self.weights)
        else:
            await self.rollout_replicas.open(None)

    @property
    def reward_pool(self) -> RewardPool | None:
        """The pool of the reward model; None where the config serves none."""
        return self.reward_replicas.pool

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes of every room by its name, each on its node; the Ray actor of a replica before its engine."""
        found = {} if self.learning is None else self.learning.pids
        for kind in (self.rollout_replicas, self.reward_replicas):
            found[kind.room] = [pid for replica in kind.replicas.serving.values() for pid in replica.pids]
        return found

    async def scale_rollouts(self, num: int) -> str:
        """Grow or shrink the rollout actors while the run goes on; see `ReplicaSet.scale`."""
        return await self.rollout_replicas.scale(num)

    async def scale_rewards(self, num: int) -> str:
        """Grow or shrink the reward pool while the run goes on; see `RewardReplicas.scale`."""
        return await self.reward_replicas.scale(num)

    def control(self, run_folder: Path, check: Callable[[], None]) -> Control:
        """Return what takes requests of stage=scale, after `start`; to be started and stopped.

        check: raises where this process may not write in the folder any more.
        """
        actions = {"actors.replicas": self.scale_rollouts, "rewards.replicas": self.scale_rewards}
        timeout_s = max(self.rollout_replicas.scale_timeout_s, self.reward_replicas.scale_timeout_s)
        return Control(self._config, run_folder, actions, timeout_s, check)

    async def restart_learners(self) -> None:
        """Start every learner group anew, with the weights of a fresh model: a checkpoint is loaded and published next.

        Raises LearnerLostError where they do not come up.
        """
        assert self.learning is not None
        await self.learning.restart()
        self.learner, self.critic = self.learning.learner, self.learning.critic
        if self._config.stage == "rl":
            self.weights.attach_learners(self.learning.handles, self.learning.node)

    def engine_calls(self) -> dict[str, StreamCall]:
        """Return how each rollout engine is asked by itself, past the pool: for a probe."""
        return self.rollout_replicas.calls

    async def close(self) -> None:
        """Close what runs, then kill the Ray actors and return the bundles; never raises."""
        if self.scorers is not None:
            with contextlib.suppress(Exception):
                await self.scorers.close()
        if self._reservation is None:
            return
        learning = [] if self.learning is None else [self.learning.close()]
        await asyncio.gather(self.rollout_replicas.close(), self.reward_replicas.close(), *learning)
        self._reservation.remove()

    def _begin_learning(self) -> None:
        """Create the learner groups' Ray actors, in stages that train."""
        config, staging = self._config, (self._config.weights.staging_dir, STAGING_FALLBACK)
        assert self._reservation is not None
        if not self._reservation.bundles("learners"):
            return
        settings = learner_settings(config, staging, self._model_bytes)
        learner, critic = self._learner_room("learners", settings, config.learners), None
        if self._reservation.bundles("critic"):
            critic = self._learner_room("critic", critic_settings(config, staging), config.critic)
        self.learning = LearningSide(learner, critic)
        self.learning.create()

    def _learner_room(self, room: str, settings: LearnerSettings, ranks: LearnersConfig | CriticConfig) -> LearnerRoom:
        assert self._reservation is not None
        group, shared = self._reservation.group(room), self._config.learners
        options: list[dict[str, Any]] = [
            actor_options(ranks.num_cpus, ranks.num_gpus, shared.threads, group, bundle, shared.resources)
            for bundle in self._reservation.bundles(room)
        ]
        return LearnerRoom("learner" if room == "learners" else room, settings, options, self._config)

    def _weight_sync(self) -> StagedWeightSync | NcclWeightSync:
        assert self.learning is not None
        weights, lost = self._config.weights, self.rollout_replicas.lost
        if uses_nccl(self._config):
            workers = self._config.actors.tensor_parallel_size
            return NcclWeightSync(self.learning.handles, workers, weights.timeout_s, lost)
        return StagedWeightSync(self.learning.handles, self.learning.node, weights.transport, weights.timeout_s, lost)
