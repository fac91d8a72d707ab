"""The rollout Ray actors: each owns one engine, holds the newest weights, and writes for the pool."""

from collections.abc import Callable
from typing import Any, Protocol

from actors.dispatch import DispatchSettings
from actors.engine import EngineSettings
from actors.pool import RolloutPool
from actors.remote import RolloutActor, pieces_of, stream_of
from actors.repetition_stop import RepetitionRule
from actors.streams import PieceCall, StreamCall
from launch.cluster import actor_options, started
from launch.places import Place, Places
from launch.preflight_disk import STAGING_FALLBACK
from launch.replica import Replica
from launch.replicas import ReplicaSet
from lwz_ray.concurrency import answered
from lwz_ray.config import Config
from lwz_ray.errors import WaitTimeoutError
from lwz_ray.failures import FailureLog

DRAIN_TIMEOUT_S = 30.0
"""For a replica that leaves to end what it writes; then others go on with it from the tokens so far."""
KILL_TIMEOUT_S = 10.0
"""For a Ray actor that still answers to kill its engine."""


class Members(Protocol):
    """The weight synchronisation as the engines' owner sees it."""

    async def join(self, name: str, handle: Any, node_id: str) -> int: ...

    def leave(self, name: str) -> None: ...


class RolloutReplicas:
    """Owns the `RolloutActor` handles and the pool over them."""

    room = "actors"
    what = "rollout actor"
    source = "rollout_lost"

    def __init__(
        self,
        config: Config,
        model_bytes: int,
        places: Places,
        failures: FailureLog,
        warn: Callable[[str, str], None] = lambda source, message: None,
    ) -> None:
        """model_bytes: of the published weights, for staging. warn(source, message): what is wrong without a loss."""
        self._config, self._model_bytes = config, model_bytes
        self._places = places
        self._weights: Members | None = None
        self.replicas = ReplicaSet(self, config.actors, config.failures, places, failures, warn)
        self.pool = RolloutPool(config.actors.request_timeout_s, DispatchSettings.of(config), self.replicas.suspect)
        self.scale = self.replicas.scale

    @property
    def scale_timeout_s(self) -> float:
        """Seconds that `scale` takes at most: for room, engines and weights, or to drain."""
        return 2 * self._config.actors.start_timeout_s + self._config.weights.timeout_s + 2 * DRAIN_TIMEOUT_S + 60.0

    @property
    def calls(self) -> dict[str, StreamCall]:
        """How each engine is asked by itself, past the pool."""
        return {name: stream_of(replica.handle) for name, replica in self.replicas.serving.items()}

    @property
    def piece_calls(self) -> dict[str, PieceCall]:
        """How each engine is asked for a text that someone reads along, past the pool."""
        return {name: pieces_of(replica.handle) for name, replica in self.replicas.serving.items()}

    def begin(self) -> None:
        """Create the first Ray actors, in the run's bundles; does nothing where the stage has none."""
        self.replicas.create(self._places.reserved(self.room))

    async def open(self, weights: Members | None) -> None:
        """Let the engines that were started take the weights and write. None: those of the model folder stay."""
        self._weights = weights
        await self.replicas.enter()

    def lost(self, name: str, reason: str) -> None:
        """Replace an engine that is of no use, such as one that did not load weights."""
        self.replicas.lost(name, reason)

    async def close(self) -> None:
        """Stop writing and end every Ray actor; never raises."""
        await self.pool.close()
        await self.replicas.close()

    def create(self, index: int, place: Place) -> Any:
        room, staging = self._config.actors, (self._config.weights.staging_dir, STAGING_FALLBACK)
        options = actor_options(
            room.num_cpus, room.num_gpus, room.threads, place.group, place.bundle, room.resources
        ) | ({} if place.bundle is not None else {"scheduling_strategy": "SPREAD"})  # fmt: skip
        return RolloutActor.options(**options).remote(engine_settings(self._config, index), staging, self._model_bytes)

    async def start(self, replica: Replica) -> None:
        what, wait_s = f"rollout actor {replica.name} to start its engine", self._config.actors.start_timeout_s
        (replica.node_id,) = await started([replica.handle.start.remote()], what, wait_s)
        (pids,) = await started([replica.handle.pids.remote()], f"{what} and name its processes", wait_s)
        replica.pids = tuple(pids)

    async def enter(self, replica: Replica) -> None:
        handle, timeout_s = replica.handle, self._config.failures.heartbeat_timeout_s
        try:
            load = await answered(_answer(handle.heartbeat.remote()), timeout_s)
        except TimeoutError:
            raise WaitTimeoutError(f"rollout actor {replica.name} to tell its load", timeout_s) from None
        # Last: between this and serving, a load that fails would find nobody to replace.
        if self._weights is not None:
            await self._weights.join(replica.name, handle, replica.node_id)
        self.pool.add_worker(replica.name, stream_of(handle), lambda: handle.interrupt.remote())
        self.pool.observe(replica.name, load)  # before anything is sent: the first burst is to fit its cache

    async def beat(self, replica: Replica) -> None:
        self.pool.observe(replica.name, await replica.handle.heartbeat.remote())

    async def leave(self, replica: Replica) -> None:
        await self.pool.remove_worker(replica.name, DRAIN_TIMEOUT_S)
        self._forget(replica)

    def lose(self, replica: Replica, reason: str) -> None:
        self.pool.lose_worker(replica.name, reason)
        self._forget(replica)

    async def disarm(self, replica: Replica) -> None:
        """Let an actor that still answers kill its engine; a dead or frozen one takes it along when it is killed."""
        self._forget(replica)
        await answered(_answer(replica.handle.kill_engine.remote()), KILL_TIMEOUT_S)

    def _forget(self, replica: Replica) -> None:
        if self._weights is not None:
            self._weights.leave(replica.name)


async def _answer(reference: Any) -> Any:
    return await reference


def engine_settings(config: Config, replica_index: int) -> EngineSettings:
    """Return one rollout engine's settings."""
    room, loops = config.actors, config.actors.repetition_stop
    rule = RepetitionRule(
        loops.max_pattern_tokens, loops.min_repeats, loops.min_looping_tokens, loops.check_every_tokens
    )
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
        weight_transfer="nccl" if uses_nccl(config) else "staged",
        threads=room.threads,
        replica_index=replica_index,
        repetition_stop=rule if loops.enabled else None,
        update_mode=config.weights.mode,
        clear_cache=config.weights.clear_cache,
    )


def uses_nccl(config: Config) -> bool:
    """Say whether weights go from GPU to GPU."""
    transport = config.weights.transport
    return transport == "nccl" or (transport == "auto" and config.learners.device == "cuda")
