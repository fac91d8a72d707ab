"""The learning side of a run: the policy's learner group and, with one, the critic's; they restart together."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from ray.exceptions import RayError

from launch.learner_room import LearnerRoom
from learners.group import LearnerGroup
from lwz_ray.concurrency import together
from lwz_ray.errors import InfrastructureError, LearnerLostError

T = TypeVar("T")


class LearningSide:
    """One or two learner groups, as one thing that can be lost and started again."""

    learner: LearnerGroup
    """After `start`, and another one after `restart`."""
    critic: LearnerGroup | None = None

    def __init__(self, learner: LearnerRoom, critic: LearnerRoom | None = None) -> None:
        self._learner, self._critic = learner, critic
        self._rooms = [room for room in (learner, critic) if room is not None]

    @property
    def handles(self) -> Sequence[Any]:
        """The learner's ranks, which publish weights."""
        return self._learner.handles

    @property
    def node(self) -> str:
        """The node id of the learner's rank 0."""
        return self._learner.nodes[0]

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes of each group's ranks, each on its node."""
        return {"learner": self._learner.pids} | ({} if self._critic is None else {"critic": self._critic.pids})

    def create(self) -> None:
        """Create every group's Ray actors."""
        for room in self._rooms:
            room.create()

    async def start(self) -> None:
        """Wait for every group to be ready."""
        await together([room.start() for room in self._rooms])
        self._regroup()

    async def restart(self) -> None:
        """Kill every group and start it anew; see `LearnerRoom.restart`."""
        await self.kill()
        await together([room.restart() for room in self._rooms])
        self._regroup()

    async def kill(self) -> None:
        """End every rank at once; pending calls fail."""
        await asyncio.gather(*(room.kill() for room in self._rooms))

    async def close(self) -> None:
        """End every group in order; never raises."""
        await asyncio.gather(*(room.close() for room in self._rooms))

    async def guard(self, work: Awaitable[T]) -> T:
        """Return what the work returns; where a rank is lost meanwhile, end the work and raise LearnerLostError.

        Whatever else the work raises is looked into: a rank that dies makes the others fail first, of a connection
        that was closed.
        """
        task = asyncio.ensure_future(work)
        watches = [asyncio.create_task(room.lost.wait()) for room in self._rooms]
        try:
            await asyncio.wait([task, *watches], return_when=asyncio.FIRST_COMPLETED)
            loss = next((room.loss for room in self._rooms if room.loss is not None), None)
            if loss is not None and not task.done():
                raise loss
            return await task
        except LearnerLostError:
            raise
        except (RayError, InfrastructureError, OSError) as error:
            if (behind := await self._loss_now()) is not None:
                raise behind from error
            raise
        finally:
            for pending in (task, *watches):
                pending.cancel()
            await asyncio.gather(task, *watches, return_exceptions=True)

    async def _loss_now(self) -> LearnerLostError | None:
        found = await asyncio.gather(*(room.look() for room in self._rooms))
        return next((loss for loss in found if loss is not None), None)

    def _regroup(self) -> None:
        self.learner = self._learner.group()
        self.critic = None if self._critic is None else self._critic.group()
