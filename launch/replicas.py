"""Replicas of one room on Ray: started, watched, replaced when they are lost, and made more or fewer during a run.

create ──▶ start ──▶ enter (weights, pool) ──▶ serving ──heartbeat late, process gone──▶ lost ──▶ kill ─┐
   ▲                                              └──stage=scale──▶ leave (drain) ──▶ end               │
   └───────────────── a free bundle, or anywhere with room (new nodes too) ◀────────────────────────────┘
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import ActorUnavailableError

from launch.cluster import end_actors, kill_actor
from launch.places import Place, Places
from launch.replica import SUSPICIONS, Kind, Replica, one_line, silence_text
from lwz_ray.concurrency import answered
from lwz_ray.config import ActorsConfig, FailuresConfig, RewardsConfig
from lwz_ray.config_base import check_replicas
from lwz_ray.errors import UserError
from lwz_ray.failures import FailureLog, classify

log = logging.getLogger(__name__)

RETRY_S = 2.0
"""Between two attempts at a replacement."""
END_TIMEOUT_S = 30.0
"""For what is being killed to be gone, when the run ends."""


class ReplicaSet:
    """The replicas of one room; for one event loop."""

    def __init__(
        self,
        kind: Kind,
        room: ActorsConfig | RewardsConfig,
        watching: FailuresConfig,
        places: Places,
        failures: FailureLog,
        warn: Callable[[str, str], None],
    ) -> None:
        """warn(source, message): told of what is wrong without being a loss."""
        self._kind, self._room, self._watching = kind, room, watching
        self._places, self._failures, self._warn = places, failures, warn
        self._starting: list[Replica] = []
        self.serving: dict[str, Replica] = {}
        """By name, oldest first."""
        self._replacing: list[asyncio.Task[None]] = []
        self._looking: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._num_named = 0
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def num_starting(self) -> int:
        """Replicas that were created and do not serve yet."""
        return len(self._starting)

    @property
    def num(self) -> int:
        """Replicas that serve, and those that are to replace lost ones."""
        return len(self.serving) + len(self._replacing)

    def create(self, places: Sequence[Place]) -> None:
        """Create the first replicas; they load while other rooms start."""
        for place in places:
            self._create(place)

    async def start(self) -> None:
        """Wait for what was created to be ready; raises what one of them failed of."""
        await asyncio.gather(*(self._kind.start(replica) for replica in self._starting))

    async def enter(self) -> None:
        """Let what was started serve, and watch over it."""
        await asyncio.gather(*(self._enter(replica) for replica in list(self._starting)))

    async def scale(self, num: int) -> str:
        """Make it `num` replicas while the run goes on; return what was done.

        Growing waits for room and for the replicas to be ready, shrinking for what those that leave have in flight.
        Raises UserError outside of min_replicas and max_replicas and where there is no room; then all stays as it was.
        """
        async with self._lock:
            try:
                check_replicas(self._kind.room, num, self._room.min_replicas, self._room.max_replicas)
            except ValueError as error:
                raise UserError(f"{error}, with which this run was started") from None
            before = self.num
            if num > before:
                await self._grow(num - before)
            elif num < before:
                await self._shrink(before - num)
            return f"{self._kind.room}.replicas: {before} -> {self.num}"

    def lost(self, name: str, reason: str) -> None:
        """Take out a replica that is gone, frozen or of no use; kill what is left of it, and start another one.

        One that does not serve any more is none of these.
        """
        replica = self.serving.pop(name, None)
        if replica is None or self._closed:
            return
        self._stop_watching(replica)
        self._kind.lose(replica, reason)
        self._failures.record(
            self._kind.source, f"{self._kind.what} {name} on node {replica.node_id[:8]} was lost: {reason}"
        )
        ending = self._run(self._kill(replica))
        self._replace(ending)

    def suspect(self, name: str, reason: str) -> None:
        """Look into a replica of which a call failed: a dead one is replaced, and one that keeps failing."""
        replica = self.serving.get(name)
        if replica is None or self._closed:
            return
        replica.suspicions.append(time.monotonic())
        recent = time.monotonic() - replica.suspicions[0] < self._room.request_timeout_s
        if len(replica.suspicions) == SUSPICIONS and recent:
            self.lost(name, f"{SUSPICIONS} calls failed within {self._room.request_timeout_s:g} s, the last: {reason}")
        else:
            look = asyncio.create_task(self._look(replica))
            self._looking.add(look)
            look.add_done_callback(self._looking.discard)

    async def close(self) -> None:
        """End every replica; never raises."""
        self._closed = True
        stopping = [*self._replacing, *self._looking]
        for task in stopping:
            task.cancel()
        await asyncio.gather(*stopping, return_exceptions=True)
        replicas = [*self._starting, *self.serving.values()]
        self._starting, self.serving = [], {}
        for replica in replicas:
            self._stop_watching(replica)
        await end_actors([replica.handle for replica in replicas])
        if self._ending:
            await asyncio.wait(self._ending, timeout=END_TIMEOUT_S)

    def _create(self, place: Place) -> Replica:
        self._num_named += 1
        taken = {replica.index for replica in [*self._starting, *self.serving.values()]}
        index = next(i for i in range(len(taken) + 1) if i not in taken)
        replica = Replica(str(self._num_named), index, place, self._kind.create(index, place))
        self._starting.append(replica)
        return replica

    async def _enter(self, replica: Replica) -> None:
        await self._kind.enter(replica)
        self._starting.remove(replica)
        self.serving[replica.name] = replica
        replica.watch = asyncio.create_task(self._watch(replica))

    async def _bring_up(self, replica: Replica) -> None:
        """Start one and let it serve; where that fails it is ended."""
        try:
            await self._kind.start(replica)
            await self._enter(replica)
        except BaseException:
            if replica in self._starting:
                self._starting.remove(replica)
            await asyncio.shield(self._run(self._kill(replica)))
            raise

    async def _grow(self, more: int) -> None:
        places = await self._places.find(self._kind.room, more, self._room.start_timeout_s)
        replicas = [self._create(place) for place in places]
        coming = [asyncio.create_task(self._bring_up(replica)) for replica in replicas]
        try:
            await asyncio.gather(*coming)
        except BaseException:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)
            # All stays as it was: those that came up before another failed leave again.
            await self._retire([replica for replica in replicas if replica.name in self.serving])
            raise

    async def _shrink(self, fewer: int) -> None:
        """Let replacements that are not there yet go first, then the youngest, those outside of the bundles first."""
        while fewer and self._replacing:
            task = self._replacing.pop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            fewer -= 1
        await self._retire(self._youngest(fewer))

    def _youngest(self, num: int) -> list[Replica]:
        found = sorted(self.serving.values(), key=lambda r: (r.place.bundle is not None, -int(r.name)))
        return found[:num]

    async def _retire(self, replicas: Sequence[Replica]) -> None:
        """Take replicas out at once, so that none of them can be lost meanwhile, and drain them."""
        for replica in replicas:
            self._stop_watching(replica)
            del self.serving[replica.name]
        await asyncio.gather(*(self._drain(replica) for replica in replicas))

    async def _drain(self, replica: Replica) -> None:
        try:
            await self._kind.leave(replica)
        finally:
            await asyncio.shield(self._run(self._end(replica)))

    def _replace(self, ending: "asyncio.Task[None]") -> None:
        task = asyncio.create_task(self._until_replaced(ending))
        self._replacing.append(task)
        task.add_done_callback(lambda ended: self._replacing.remove(ended) if ended in self._replacing else None)

    async def _until_replaced(self, ending: "asyncio.Task[None]") -> None:
        """Wait for the end of a lost replica, then for room, and start another one; again until one serves.

        A replacement that fails to start counts as a loss, so that the budget ends what cannot succeed.
        """
        await asyncio.shield(ending)
        what, task = self._kind.what, asyncio.current_task()
        while self._failures.exceeded is None:
            try:
                await self._bring_up(self._create(await self._place_for_one()))
            except Exception as error:
                text = f"a {what} that was to replace a lost one did not start: {one_line(error)}"
                self._failures.record(self._kind.source, text, classify(error))
                await asyncio.sleep(RETRY_S)
                continue
            if task in self._replacing:  # before anyone counts both
                self._replacing.remove(task)
            return

    async def _place_for_one(self) -> Place:
        """Wait for room as long as it takes: a node may come back, or another join."""
        waits = False
        while True:
            try:
                (place,) = await self._places.find(self._kind.room, 1, self._room.start_timeout_s)
                return place
            except UserError as error:
                if not waits:
                    self._warn(self._kind.room, f"a lost {self._kind.what} is not replaced yet: {error}")
                waits = True
            await asyncio.sleep(RETRY_S)

    async def _watch(self, replica: Replica) -> None:
        """Ask for a sign of life again and again; take what gives none in time for lost."""
        limit_s = self._watching.heartbeat_timeout_s
        heard = time.monotonic()
        while self.serving.get(replica.name) is replica:
            try:
                await answered(self._kind.beat(replica), limit_s)
                heard = time.monotonic()
            except TimeoutError:
                self.lost(replica.name, silence_text(limit_s))
            except ActorUnavailableError as error:  # the way there is broken; it may come back
                if time.monotonic() - heard > limit_s:
                    self.lost(replica.name, one_line(error))
            except Exception as error:  # its process or its engine is gone
                self.lost(replica.name, one_line(error))
            await asyncio.sleep(self._watching.heartbeat_every_s)

    async def _look(self, replica: Replica) -> None:
        """Ask once, out of turn."""
        try:
            await answered(self._kind.beat(replica), self._watching.heartbeat_timeout_s)
        except TimeoutError:
            self.lost(replica.name, silence_text(self._watching.heartbeat_timeout_s))
        except ActorUnavailableError:
            pass  # the regular heartbeat knows for how long
        except Exception as error:
            self.lost(replica.name, one_line(error))

    async def _kill(self, replica: Replica) -> None:
        try:
            await self._kind.disarm(replica)
        except Exception as error:
            log.info("%s %s did not end its processes itself: %s", self._kind.what, replica.name, one_line(error))
        kill_actor(replica.handle)
        self._places.give_back(replica.place)

    async def _end(self, replica: Replica) -> None:
        await end_actors([replica.handle])
        self._places.give_back(replica.place)

    def _run(self, work: Any) -> "asyncio.Task[None]":
        """Start what must come to its end, whoever stops waiting for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    def _stop_watching(self, replica: Replica) -> None:
        if replica.watch is not None and replica.watch is not asyncio.current_task():
            replica.watch.cancel()
        replica.watch = None
