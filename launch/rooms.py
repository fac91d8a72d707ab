"""Building the rooms on Ray: actors, rewards and learners in one placement group, all started at once."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.engine import EngineSettings
from actors.pool import RolloutPool
from actors.remote import RolloutActor
from launch.cluster import reserve
from launch.weight_sync import StagedWeightSync
from learners.group import LearnerGroup
from learners.remote import LearnerActor
from learners.settings import LearnerSettings
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, WaitTimeoutError
from lwz_ray.protocols import WeightSync
from rewards.pool import RewardPool
from rewards.remote import RewardWorker, as_replica
from rewards.scorer import RewardSet


class Rooms:
    """The running system. `start` builds it, `close` takes it down; both leave nothing half done."""

    rollouts: RolloutPool
    scorer: RewardSet
    learner: LearnerGroup
    weights: WeightSync

    def __init__(self, config: Config, model_bytes: int) -> None:
        """model_bytes: of the published weights, for staging."""
        self._config = config
        self._model_bytes = model_bytes
        self._group: PlacementGroup | None = None
        self.rollout_handles: list[Any] = []
        self.reward_handles: list[Any] = []
        self.learner_handles: list[Any] = []

    async def start(self) -> None:
        """Reserve, construct and start every room. Raises UserError, WaitTimeoutError or the room's own error."""
        self._group, index = await reserve(self._config)
        self._construct(index)
        nodes, _, _ = await asyncio.gather(self._start_rollouts(), self._start_rewards(), self._start_learners())
        self.rollouts = RolloutPool(
            [h.generate.remote for h in self.rollout_handles], self._config.actors.request_timeout_s
        )
        self.scorer = RewardSet(self._config.rewards, self._reward_pool())
        self.learner = LearnerGroup(
            [_Rank(h) for h in self.learner_handles],
            self._config.learners.microbatch_tokens,
            self._config.learners.step_timeout_s,
        )
        self.weights = await self._weight_sync(nodes)

    def _construct(self, index: dict[str, list[int]]) -> None:
        config = self._config
        staging = (config.weights.staging_dir, "/tmp")
        for i, bundle in enumerate(index["actors"]):
            options = self._options(bundle, config.actors.num_cpus, config.actors.num_gpus, config.actors.threads)
            settings = engine_settings(config, i)
            self.rollout_handles.append(RolloutActor.options(**options).remote(settings, staging, self._model_bytes))
        for bundle in index.get("rewards", []):
            room = config.rewards
            options = self._options(bundle, room.num_cpus, room.num_gpus, room.threads)
            self.reward_handles.append(
                RewardWorker.options(**options).remote(room.writing, room.threads, math.ceil(room.num_gpus))
            )
        for bundle in index["learners"]:
            room = config.learners
            options = self._options(bundle, room.num_cpus, room.num_gpus, room.threads)
            settings = learner_settings(config, staging, self._model_bytes)
            self.learner_handles.append(LearnerActor.options(**options).remote(settings))

    def _options(self, bundle: int, num_cpus: float, num_gpus: float, threads: int) -> dict[str, Any]:
        """Resources are Ray's to count; threads are set explicitly, or every process would take every core."""
        assert self._group is not None
        return {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=bundle
            ),
            "runtime_env": {
                "env_vars": {
                    "OMP_NUM_THREADS": str(threads),
                    "MKL_NUM_THREADS": str(threads),
                    "TOKENIZERS_PARALLELISM": "false",
                    # Keep freed memory: glibc would map and clear the same activations anew in every layer.
                    "MALLOC_MMAP_THRESHOLD_": str(2**33),
                    "MALLOC_TRIM_THRESHOLD_": str(2**34),
                    "VLLM_NO_USAGE_STATS": "1",
                }
            },
        }

    async def _start_rollouts(self) -> list[str]:
        calls = [h.start.remote() for h in self.rollout_handles]
        return await _started(calls, "rollout actors to start their engines", self._config.actors.start_timeout_s)

    async def _start_rewards(self) -> list[bool]:
        calls = [h.ready.remote() for h in self.reward_handles]
        return await _started(calls, "reward workers to load their model", self._config.rewards.start_timeout_s)

    async def _start_learners(self) -> list[str]:
        timeout_s = self._config.learners.start_timeout_s
        (address,) = await _started([self.learner_handles[0].rendezvous.remote()], "learner rank 0", timeout_s)
        world = len(self.learner_handles)
        calls = [h.start.remote(rank, world, address) for rank, h in enumerate(self.learner_handles)]
        self._learner_nodes = await _started(calls, "learner ranks to join and load the model", timeout_s)
        return self._learner_nodes

    def _reward_pool(self) -> RewardPool | None:
        if not self.reward_handles:
            return None
        room = self._config.rewards
        replicas = [as_replica(h) for h in self.reward_handles]
        return RewardPool(replicas, room.writing.batch_size, room.request_timeout_s)

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
        handles = [*self.rollout_handles, *self.learner_handles, *self.reward_handles]
        with contextlib.suppress(Exception):
            await asyncio.wait_for(
                asyncio.gather(*(h.close.remote() for h in handles), return_exceptions=True), timeout=20.0
            )
        for handle in handles:
            with contextlib.suppress(Exception):
                ray.kill(handle)
        if self._group is not None:
            remove_placement_group(self._group)


class _Rank:
    """A LearnerActor handle as `LearnerGroup` calls it."""

    def __init__(self, handle: Any) -> None:
        self.train = handle.train.remote
        self.save = handle.save.remote
        self.load = handle.load.remote
        self.export = handle.export.remote


async def _started(calls: Sequence[Awaitable[Any]], what: str, timeout_s: float) -> list[Any]:
    together = asyncio.gather(*calls)
    # When another room fails first, or the run is stopped, nobody asks this one for its error any more.
    together.add_done_callback(lambda future: future.cancelled() or future.exception())
    try:
        return list(await asyncio.wait_for(together, timeout_s))
    except TimeoutError:
        raise WaitTimeoutError(what, timeout_s) from None
    except RayTaskError as error:
        raise InfrastructureError(f"while waiting for {what}: {error.cause}") from error
    except RayActorError as error:
        last = str(error).strip().splitlines()[-1]
        raise InfrastructureError(f"while waiting for {what}: the process died: {last}") from error


def engine_settings(config: Config, replica_index: int) -> EngineSettings:
    """Return one rollout engine's settings."""
    room = config.actors
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
    )


def learner_settings(config: Config, staging: tuple[str, ...], model_bytes: int) -> LearnerSettings:
    """Return every learner rank's settings."""
    room, optimizer = config.learners, config.optimizer
    return LearnerSettings(
        model_path=config.model.path,
        trust_remote_code=config.model.trust_remote_code,
        device=room.device,
        dtype=room.dtype,
        publish_dtype=config.actors.dtype,
        threads=room.threads,
        temperature=config.sampling.temperature,
        clip_epsilon=config.algorithm.clip_epsilon,
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
    )
