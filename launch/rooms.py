"""Building the rooms on Ray: actors, rewards and learners in one placement group, all started at once."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.engine import EngineSettings
from actors.pool import RolloutPool
from actors.remote import RolloutActor, stream_of
from actors.repetition_stop import RepetitionRule
from launch.cluster import actor_options, end_actors, reserve, started
from launch.learner_room import LearnerRoom, critic_settings, learner_settings
from launch.reward_replicas import RewardReplicas
from launch.scorers import Scorers
from launch.weight_sync import StagedWeightSync
from learners.group import LearnerGroup
from learners.remote import LearnerActor
from learners.settings import LearnerSettings
from lwz_ray.config import Config, CriticConfig, LearnersConfig
from lwz_ray.protocols import WeightSync
from rewards.pool import RewardPool


class Rooms:
    """The running rooms of the config's stage. `start` builds them, `close` takes them down, nothing half done."""

    rollouts: RolloutPool
    learner: LearnerGroup
    critic: LearnerGroup | None = None
    """With algorithm.advantage=gae only."""
    weights: WeightSync

    def __init__(self, config: Config, model_bytes: int, warn: Callable[[str, str], None] | None = None) -> None:
        """model_bytes: of the published weights, for staging. warn(source, message): told of what goes wrong later."""
        self._config = config
        self._model_bytes = model_bytes
        self._group: PlacementGroup | None = None
        self.rollout_handles: list[Any] = []
        self._rewards = RewardReplicas(config, warn)
        self._learners: LearnerRoom | None = None
        self._critic: LearnerRoom | None = None
        self.scorers: Scorers | None = None

    async def start(self) -> None:
        """Reserve, construct and start every room. Raises UserError, WaitTimeoutError or the room's own error."""
        self._group, index = await reserve(self._config)
        self._construct(index)
        learning = [room.start() for room in (self._learners, self._critic) if room is not None]
        nodes, _, _ = await asyncio.gather(self._start_rollouts(), self._rewards.start(), asyncio.gather(*learning))
        if self.rollout_handles:
            self.rollouts = RolloutPool(
                [stream_of(h) for h in self.rollout_handles], self._config.actors.request_timeout_s
            )
        if self._learners is not None:
            self.learner = self._learners.group()
        if self._critic is not None:
            self.critic = self._critic.group()
        if self._config.stage == "rl":
            self.scorers = Scorers(self._config, self.reward_pool)
            self.weights = await self._weight_sync(nodes)

    @property
    def reward_pool(self) -> RewardPool | None:
        """The pool of the reward model; None where the config serves none, or before `start`."""
        return self._rewards.pool

    @property
    def scale_timeout_s(self) -> float:
        return self._rewards.scale_timeout_s

    async def scale_rewards(self, replicas: int) -> str:
        """Grow or shrink the reward pool while the run goes on; see `RewardReplicas.scale`."""
        return await self._rewards.scale(replicas)

    def _construct(self, index: dict[str, list[int]]) -> None:
        config = self._config
        staging = (config.weights.staging_dir, "/tmp")
        for i, bundle in enumerate(index.get("actors", [])):
            options = self._options(bundle, config.actors.num_cpus, config.actors.num_gpus, config.actors.threads)
            settings = engine_settings(config, i)
            self.rollout_handles.append(RolloutActor.options(**options).remote(settings, staging, self._model_bytes))
        assert self._group is not None
        self._rewards.create(self._group, index.get("rewards", []))
        if "learners" in index:
            settings = learner_settings(config, staging, self._model_bytes)
            self._learners = self._learner_room("learner", settings, index["learners"], config.learners)
        if "critic" in index:
            settings = critic_settings(config, staging)
            self._critic = self._learner_room("critic", settings, index["critic"], config.critic)

    def _learner_room(
        self, name: str, settings: LearnerSettings, bundles: Sequence[int], ranks: LearnersConfig | CriticConfig
    ) -> LearnerRoom:
        """Construct one Ray actor a bundle."""
        actor: Any = LearnerActor  # ray.remote with arguments returns an actor class, its types say the plain one
        handles = []
        for bundle in bundles:
            options = self._options(bundle, ranks.num_cpus, ranks.num_gpus, self._config.learners.threads)
            handles.append(actor.options(**options).remote(settings))
        return LearnerRoom(name, handles, self._config)

    def _options(self, bundle: int, num_cpus: float, num_gpus: float, threads: int) -> dict[str, Any]:
        assert self._group is not None
        return actor_options(num_cpus, num_gpus, threads, self._group, bundle)

    async def _start_rollouts(self) -> list[str]:
        calls = [h.start.remote() for h in self.rollout_handles]
        return await started(calls, "rollout actors to start their engines", self._config.actors.start_timeout_s)

    async def _weight_sync(self, rollout_nodes: Sequence[str]) -> WeightSync:
        assert self._learners is not None
        mode, learners = self._config.weights.mode, self._learners.handles
        if mode == "auto":
            one_host = set(rollout_nodes) == {self._learners.nodes[0]}
            mode = "nccl" if self._config.learners.device == "cuda" else "shm" if one_host else "object_store"
        if mode == "nccl":
            from launch.nccl_sync import NcclWeightSync

            return await NcclWeightSync.open(
                learners, self.rollout_handles, self._config.actors.tensor_parallel_size,
                self._config.weights.timeout_s,
            )  # fmt: skip
        return StagedWeightSync(learners, self.rollout_handles, mode, self._config.weights.timeout_s)

    async def close(self) -> None:
        """Close what runs, then kill the Ray actors and return the bundles; never raises."""
        if self.scorers is not None:
            with contextlib.suppress(Exception):
                await self.scorers.close()
        learning = [h for room in (self._learners, self._critic) if room is not None for h in room.handles]
        await asyncio.gather(self._rewards.close(), end_actors([*self.rollout_handles, *learning]))
        if self._group is not None:
            remove_placement_group(self._group)


def engine_settings(config: Config, replica_index: int) -> EngineSettings:
    """Return one rollout engine's settings."""
    room, loops = config.actors, config.actors.repetition_stop
    rule = RepetitionRule(
        loops.max_pattern_tokens, loops.min_repeats, loops.min_looping_tokens, loops.check_every_tokens
    )
    nccl = config.weights.mode == "nccl" or (config.weights.mode == "auto" and config.learners.device == "cuda")
    return EngineSettings(
        model_path=config.model.path,
        dtype=room.dtype,
        max_length_tokens=config.model.max_length_tokens,
        max_num_seqs=room.max_num_seqs,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        max_tokens=config.sampling.max_tokens,
        stop=config.template.stop,
        tensor_parallel_size=room.tensor_parallel_size,
        kv_cache_mib=room.kv_cache_mib,
        memory_utilization=room.memory_utilization,
        enforce_eager=room.enforce_eager,
        trust_remote_code=config.model.trust_remote_code,
        seed=config.seed,
        weight_transfer="nccl" if nccl else "staged",
        threads=room.threads,
        replica_index=replica_index,
        repetition_stop=rule if loops.enabled else None,
    )
