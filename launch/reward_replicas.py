"""The reward model's Ray actors: each has its own copy of the model and scores for the pool."""

import math
from collections.abc import Callable
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launch.cluster import actor_options, started
from launch.places import Place, Places
from launch.replica import Replica
from launch.replicas import ReplicaSet
from lwz_ray.concurrency import answered
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.failures import FailureLog
from rewards.pool import RewardPool
from rewards.remote import Process, RewardWorker, as_replica, end_processes

KILL_TIMEOUT_S = 10.0
"""For what is below a lost Ray actor to be killed, by a task on its node."""


class RewardReplicas:
    """Owns the `RewardWorker` handles and the pool over them."""

    room = "rewards"
    what = "reward replica"
    source = "reward_lost"
    pool: RewardPool | None = None
    """None where the config serves no reward model, or before `open`."""

    def __init__(
        self,
        config: Config,
        places: Places,
        failures: FailureLog,
        warn: Callable[[str, str], None] = lambda source, message: None,
    ) -> None:
        """warn(source, message): told of what is wrong without being a loss."""
        self._config, self._places = config, places
        self._processes: dict[str, list[Process]] = {}
        self.replicas = ReplicaSet(self, config.rewards, config.failures, places, failures, warn)

    @property
    def scale_timeout_s(self) -> float:
        """Seconds that `scale` takes at most: for room and then the model, or for the batches in flight."""
        return 2 * self._config.rewards.start_timeout_s + self._config.rewards.request_timeout_s + 60.0

    def begin(self, places: list[Place] | None = None) -> None:
        """Create the first Ray actors, which load while others start; places: others than the run's bundles."""
        self.replicas.create(self._places.reserved(self.room) if places is None else places)

    async def open(self) -> None:
        """Let what was started score; does nothing where there is none."""
        room = self._config.rewards
        if self.replicas.num_starting:
            self.pool = RewardPool([], room.writing.batch_size, room.request_timeout_s, self.replicas.lost)
            await self.replicas.enter()

    async def scale(self, num: int) -> str:
        """Grow or shrink while scoring goes on, see `ReplicaSet.scale`; raises UserError where there is no pool."""
        if self.pool is None:
            raise UserError("this run serves no reward model (rewards.writing.path=null): nothing to scale")
        return await self.replicas.scale(num)

    async def close(self) -> None:
        """Stop scoring and end every Ray actor; never raises."""
        if self.pool is not None:
            await self.pool.close()
        await self.replicas.close()

    def create(self, index: int, place: Place) -> Any:
        room = self._config.rewards
        options = actor_options(room.num_cpus, room.num_gpus, room.threads, place.group, place.bundle, room.resources)
        worker: Any = RewardWorker  # ray.remote with arguments returns an actor class, its types say the plain one
        return worker.options(**options).remote(room.writing, room.threads, math.ceil(room.num_gpus))

    async def start(self, replica: Replica) -> None:
        what, wait_s = f"reward replica {replica.name} to load its model", self._config.rewards.start_timeout_s
        await started([replica.handle.ready.remote()], what, wait_s)
        ((node_id, processes),) = await started([replica.handle.whereabouts.remote()], what, wait_s)
        replica.node_id, replica.pids = node_id, tuple(pid for pid, _ in processes)
        self._processes[replica.name] = processes

    async def enter(self, replica: Replica) -> None:
        assert self.pool is not None
        self.pool.add_replica(replica.name, as_replica(replica.handle))

    async def beat(self, replica: Replica) -> None:
        await replica.handle.heartbeat.remote()

    async def leave(self, replica: Replica) -> None:
        assert self.pool is not None
        await self.pool.remove_replica(replica.name, self._config.rewards.request_timeout_s)
        self._processes.pop(replica.name, None)

    def lose(self, replica: Replica, reason: str) -> None:
        assert self.pool is not None
        self.pool.lose_replica(replica.name, reason)

    async def disarm(self, replica: Replica) -> None:
        """Kill it and what is below it on its node: a killed Ray actor leaves vLLM's child process to itself."""
        processes = self._processes.pop(replica.name, None)
        if processes is not None:
            there = NodeAffinitySchedulingStrategy(replica.node_id, soft=False)
            await answered(_answer(end_processes.options(scheduling_strategy=there).remote(processes)), KILL_TIMEOUT_S)


async def _answer(reference: Any) -> Any:
    return await reference
