"""The reward model's Ray actors: started with the run, and grown and shrunk while it goes on."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from launch.cluster import actor_options, end_actors, started
from launch.plan import bundles
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from rewards.pool import RewardPool
from rewards.remote import RewardWorker, as_replica

log = logging.getLogger(__name__)

POLL_S = 0.5


class RewardReplicas:
    """Owns the `RewardWorker` actors and the pool over them."""

    pool: RewardPool | None = None
    """None where the config serves no reward model."""

    def __init__(self, config: Config, warn: Callable[[str, str], None] | None = None) -> None:
        """warn(source, message): told of a replica that is lost."""
        self._config = config
        self._warn = warn
        self._group: PlacementGroup | None = None
        self._handles: dict[str, Any] = {}
        """By the replica's name in the pool, oldest first."""
        self._bundles: dict[str, int] = {}
        """Of the replicas that run in the placement group."""
        self._free_bundles: list[int] = []
        self._outside = 0
        """Replicas that run beside the placement group."""
        self._next_name = 1
        self._lock = asyncio.Lock()

    @property
    def scale_timeout_s(self) -> float:
        """Seconds that `scale` takes at most: for resources and then the model, or for the batches in flight."""
        return 2 * self._config.rewards.start_timeout_s + self._config.rewards.request_timeout_s + 60.0

    def create(self, group: PlacementGroup | None, indices: Sequence[int | None]) -> None:
        """Create one actor for each bundle (None: wherever there is room); they load while others start."""
        self._group = group
        for index in indices:
            self._create(index)

    async def start(self) -> None:
        """Wait for all to be ready and open the pool; does nothing where there are none."""
        if not self._handles:
            return
        await self._ready(list(self._handles))
        room = self._config.rewards
        replicas = [as_replica(h) for h in self._handles.values()]
        self.pool = RewardPool(replicas, room.writing.batch_size, room.request_timeout_s, self._lost)

    async def scale(self, replicas: int) -> str:
        """Grow or shrink to `replicas` while scoring goes on; return what was done.

        Shrinking waits for what each replica has in flight, growing for free resources and the model. Raises UserError
        where there is no pool, or where the resources are not free within `rewards.start_timeout_s`; then all stays as
        it was.
        """
        async with self._lock:
            pool = self.pool
            if pool is None:
                raise UserError("this run serves no reward model (rewards.writing.path=null): nothing to scale")
            if replicas < 1:
                raise UserError(f"rewards.replicas={replicas}: the pool needs at least 1")
            before = pool.num_replicas
            if replicas > before:
                await self._grow(pool, replicas - before)
            elif replicas < before:
                await self._shrink(pool, before - replicas)
            return f"rewards.replicas: {before} -> {pool.num_replicas}"

    async def close(self) -> None:
        """End every replica; never raises."""
        if self.pool is not None:
            await self.pool.close()
        await self._end(list(self._handles))

    def _create(self, bundle: int | None) -> str:
        room = self._config.rewards
        options = actor_options(room.num_cpus, room.num_gpus, room.threads, self._group, bundle)
        name = str(self._next_name)
        self._next_name += 1
        worker = RewardWorker.options(**options).remote(room.writing, room.threads, math.ceil(room.num_gpus))
        self._handles[name] = worker
        if bundle is None:
            self._outside += 1
        else:
            self._bundles[name] = bundle
        return name

    async def _ready(self, names: Sequence[str]) -> None:
        calls = [self._handles[name].ready.remote() for name in names]
        await started(calls, "reward workers to load their model", self._config.rewards.start_timeout_s)

    async def _grow(self, pool: RewardPool, more: int) -> None:
        """Use the bundles that shrinking left free first; they are reserved for this run anyway."""
        reused = self._free_bundles[:more]
        await self._wait_for_resources(more - len(reused))
        del self._free_bundles[: len(reused)]
        names = [self._create(bundle) for bundle in [*reused, *[None] * (more - len(reused))]]
        try:
            await self._ready(names)
        except BaseException:
            await self._end(names)
            raise
        for name in names:
            pool.add_replica(name, as_replica(self._handles[name]))

    async def _shrink(self, pool: RewardPool, fewer: int) -> None:
        """Let the youngest go: those beside the placement group give their resources back to the cluster."""

        async def retire(name: str) -> None:
            await pool.remove_replica(name, self._config.rewards.request_timeout_s)
            await self._end([name])

        youngest_first = sorted(self._handles, key=lambda name: (name in self._bundles, -int(name)))
        await asyncio.gather(*(retire(name) for name in youngest_first[:fewer]))

    async def _wait_for_resources(self, num: int) -> None:
        """Wait until the cluster has room for `num` more replicas outside of the placement group."""
        room = self._config.rewards
        need = {"CPU": num * room.num_cpus, "GPU": num * room.num_gpus}
        need = {kind: amount for kind, amount in need.items() if amount > 0}
        total = ray.cluster_resources()
        for kind, amount in need.items():
            each = room.num_cpus if kind == "CPU" else room.num_gpus
            own = sum(b.get(kind, 0.0) for items in bundles(self._config).values() for b in items)
            own += self._outside * each
            if own + amount > total.get(kind, 0.0) + 1e-6:
                raise UserError(
                    f"{num} more reward replicas need {amount:g} {kind}s, this run holds {own:g} of the cluster's "
                    f"{total.get(kind, 0.0):g}: ask for fewer, lower rewards.num_{kind.lower()}s, or add nodes"
                )
        end = time.monotonic() + room.start_timeout_s
        while True:
            free = ray.available_resources()
            if all(free.get(kind, 0.0) + 1e-6 >= amount for kind, amount in need.items()):
                return
            if time.monotonic() > end:
                wanted, there = (", ".join(f"{r.get(k, 0.0):g} {k}s" for k in need) for r in (need, free))
                raise UserError(
                    f"waited {room.start_timeout_s:g} s for {wanted} for {num} more reward replicas; free now: "
                    f"{there}; wait for other jobs to end or ask for fewer"
                )
            await asyncio.sleep(POLL_S)

    def _lost(self, name: str, reason: str) -> None:
        """Hear from the pool that a replica is gone: what is left of it is killed, its bundle may be used again."""
        handle = self._forget(name)
        with contextlib.suppress(Exception):
            ray.kill(handle)
        message = f"replica {name} of the reward model was lost: {reason}; stage=scale starts another one"
        if self._warn is not None:
            self._warn("reward pool", message)
        else:
            log.warning("%s", message)

    def _forget(self, name: str) -> Any:
        if name in self._bundles:
            self._free_bundles.append(self._bundles.pop(name))
        else:
            self._outside -= 1
        return self._handles.pop(name)

    async def _end(self, names: Sequence[str]) -> None:
        await end_actors([self._forget(name) for name in names])
