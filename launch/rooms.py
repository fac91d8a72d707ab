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
from launch.reward_replicas import RewardReplicas
from launch.scorers import Scorers
from launch.weight_sync import StagedWeightSync
from learners.group import LearnerGroup
from learners.remote import LearnerActor
from learners.settings import LearnerSettings
from lwz_ray.config import Config
from lwz_ray.packing import split_over_ranks
from lwz_ray.preferences import split_pairs_over_ranks
from lwz_ray.protocols import WeightSync
from rewards.pool import RewardPool


class Rooms:
    """The running rooms of the config's stage. `start` builds them, `close` takes them down, nothing half done."""

    rollouts: RolloutPool
    learner: LearnerGroup
    weights: WeightSync

    def __init__(self, config: Config, model_bytes: int, warn: Callable[[str, str], None] | None = None) -> None:
        """model_bytes: of the published weights, for staging. warn(source, message): told of what goes wrong later."""
        self._config = config
        self._model_bytes = model_bytes
        self._group: PlacementGroup | None = None
        self.rollout_handles: list[Any] = []
        self._rewards = RewardReplicas(config, warn)
        self.learner_handles: list[Any] = []
        self.scorers: Scorers | None = None

    async def start(self) -> None:
        """Reserve, construct and start every room. Raises UserError, WaitTimeoutError or the room's own error."""
        self._group, index = await reserve(self._config)
        self._construct(index)
        nodes, _, _ = await asyncio.gather(self._start_rollouts(), self._rewards.start(), self._start_learners())
        if self.rollout_handles:
            self.rollouts = RolloutPool(
                [stream_of(h) for h in self.rollout_handles], self._config.actors.request_timeout_s
            )
        if self.learner_handles:
            self.learner = LearnerGroup(
                [_Rank(h) for h in self.learner_handles],
                self._config.learners.microbatch_tokens,
                self._config.learners.step_timeout_s,
                pack=split_pairs_over_ranks if self._config.stage == "train_rm" else split_over_ranks,
            )
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
        for bundle in index.get("learners", []):
            room = config.learners
            options = self._options(bundle, room.num_cpus, room.num_gpus, room.threads)
            settings = learner_settings(config, staging, self._model_bytes)
            self.learner_handles.append(LearnerActor.options(**options).remote(settings))

    def _options(self, bundle: int, num_cpus: float, num_gpus: float, threads: int) -> dict[str, Any]:
        assert self._group is not None
        return actor_options(num_cpus, num_gpus, threads, self._group, bundle)

    async def _start_rollouts(self) -> list[str]:
        calls = [h.start.remote() for h in self.rollout_handles]
        return await started(calls, "rollout actors to start their engines", self._config.actors.start_timeout_s)

    async def _start_learners(self) -> list[str]:
        if not self.learner_handles:
            return []
        timeout_s = self._config.learners.start_timeout_s
        (address,) = await started([self.learner_handles[0].rendezvous.remote()], "learner rank 0", timeout_s)
        world = len(self.learner_handles)
        calls = [h.start.remote(rank, world, address) for rank, h in enumerate(self.learner_handles)]
        self._learner_nodes = await started(calls, "learner ranks to join and load the model", timeout_s)
        return self._learner_nodes

    async def _weight_sync(self, rollout_nodes: Sequence[str]) -> WeightSync:
        mode = self._config.weights.mode
        if mode == "auto":
            one_host = set(rollout_nodes) == {self._learner_nodes[0]}
            mode = "nccl" if self._config.learners.device == "cuda" else "shm" if one_host else "object_store"
        if mode == "nccl":
            from launch.nccl_sync import NcclWeightSync

            return await NcclWeightSync.open(
                self.learner_handles, self.rollout_handles, self._config.actors.tensor_parallel_size,
                self._config.weights.timeout_s,
            )  # fmt: skip
        return StagedWeightSync(self.learner_handles, self.rollout_handles, mode, self._config.weights.timeout_s)

    async def close(self) -> None:
        """Close what runs, then kill the Ray actors and return the bundles; never raises."""
        if self.scorers is not None:
            with contextlib.suppress(Exception):
                await self.scorers.close()
        await asyncio.gather(self._rewards.close(), end_actors([*self.rollout_handles, *self.learner_handles]))
        if self._group is not None:
            remove_placement_group(self._group)


class _Rank:
    """A LearnerActor handle as `LearnerGroup` calls it."""

    def __init__(self, handle: Any) -> None:
        self.train = handle.train.remote
        self.predict = handle.predict.remote
        self.save = handle.save.remote
        self.load = handle.load.remote
        self.export = handle.export.remote


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


def learner_settings(config: Config, staging: tuple[str, ...], model_bytes: int) -> LearnerSettings:
    """Return every learner rank's settings."""
    room, optimizer = config.learners, config.optimizer
    preference = config.stage == "train_rm"
    return LearnerSettings(
        model_path=config.model.path,
        trust_remote_code=config.model.trust_remote_code,
        device=room.device,
        dtype=room.dtype,
        publish_dtype=config.actors.dtype,
        threads=room.threads,
        temperature=config.sampling.temperature,
        logprob_chunk_tokens=room.logprob_chunk_tokens,
        activation_checkpointing=room.activation_checkpointing,
        reshard_after_forward=room.reshard_after_forward,
        lr=optimizer.lr,
        betas=(optimizer.betas[0], optimizer.betas[1]),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        max_grad_norm=optimizer.max_grad_norm,
        bucket_bytes=config.weights.bucket_mib * 2**20,
        staging_candidates=staging,
        staging_bytes=model_bytes,
        timeout_s=room.step_timeout_s,
        seed=config.seed,
        algorithm=None if preference else config.algorithm,
        lora=config.lora if config.lora.rank else None,
        cpu_offload=room.cpu_offload,
        sequence_parallel=room.sequence_parallel,
        attention=room.attention,
        liger=room.liger,
        objective="preference" if preference else "policy",
        backend=room.backend,
        zero_stage=room.zero_stage,
        center_coefficient=config.preference.center_coefficient,
        lr_schedule=config.preference.lr_schedule if preference else "constant",
        total_steps=config.steps if preference else 0,
    )
