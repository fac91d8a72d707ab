"""Who takes part in a broadcast, and who joins, leaves or is left out; the broadcast itself is vLLM's."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.engine import EngineLostError
from launch.nccl_sync import NcclWeightSync, RolloutClient
from lwz_ray.errors import InfrastructureError, LearnerLostError
from tests.weight_parts import InProcess


@dataclass
class Engine:
    """What a transfer group asks of a rollout actor: to be there."""

    alive: bool = True
    version: int = 0

    async def heartbeat(self) -> int:
        if not self.alive:
            raise EngineLostError("its process is gone")
        return 1


@dataclass
class Rank:
    """Learner rank 0, whose broadcast reaches all members of the group or fails."""

    alive: bool = True
    has_trained: bool = False
    """Since the last broadcast."""
    group: list[Engine] = field(default_factory=list)

    def free_address(self) -> tuple[str, int]:
        return "here", 1

    def open_nccl(self, client: RolloutClient, host: str, port: int, size: int) -> None:
        self.group = [handle.target for handle in client._rollouts]
        assert size == 1 + 2 * len(self.group)
        self._meet()

    def send_nccl(self, policy_version: int, only_unchanged: bool = False) -> bool:
        if only_unchanged and self.has_trained:
            return False
        self._meet()
        for engine in self.group:
            engine.version = policy_version
        self.has_trained = False
        return True

    def _meet(self) -> None:
        if not self.alive or not all(engine.alive for engine in self.group):
            raise RuntimeError("a peer closed its connection")

    async def heartbeat(self) -> int:
        if not self.alive:
            raise LearnerLostError("its process is gone")
        return 1


@dataclass
class Case:
    rank: Rank = field(default_factory=Rank)
    failed: list[tuple[str, str]] = field(default_factory=list)
    sync: Any = None

    def __post_init__(self) -> None:
        self.sync = NcclWeightSync([InProcess(self.rank)], 2, 5.0, lambda *told: self.failed.append(told))

    async def joined(self, name: str) -> Engine:
        engine = Engine()
        await self.sync.join(name, InProcess(engine), "here")
        return engine


async def begun(work: Any) -> "asyncio.Task[Any]":
    """Return a task that has come as far as it comes by itself."""
    task = asyncio.create_task(work)
    for _ in range(20):
        await asyncio.sleep(0)
    return task


async def test_who_joins_gets_what_was_sent_last_while_the_learner_still_has_it() -> None:
    case = Case()
    early = await case.joined("early")
    assert await case.sync.stage(1) and await case.sync.load(1) == {}
    late = await case.joined("late")
    assert (early.version, late.version) == (1, 1)


async def test_who_joins_after_training_waits_for_the_next_version() -> None:
    case = Case()
    await case.joined("early")
    await case.sync.stage(1)
    case.rank.has_trained = True
    late = Engine()
    joining = await begun(case.sync.join("late", InProcess(late), "here"))
    assert not joining.done()
    await case.sync.stage(2)
    assert await joining == 2 and late.version == 2


async def test_who_dies_while_it_waits_to_join_is_not_taken_for_a_member() -> None:
    case = Case()
    early = await case.joined("early")
    await case.sync.stage(1)
    case.rank.has_trained = True
    late = Engine()
    joining = await begun(case.sync.join("late", InProcess(late), "here"))
    late.alive = False
    await case.sync.stage(2)
    with pytest.raises(InfrastructureError, match="rollout actor late was left out when policy version 2 was sent"):
        await joining
    assert early.version == 2 and [name for name, _ in case.failed] == ["late"]


async def test_a_lost_learner_is_not_blamed_on_engines() -> None:
    case = Case()
    await case.joined("a")
    case.rank.alive = False
    with pytest.raises(LearnerLostError, match="while policy version 1 crossed NCCL: its process is gone"):
        await case.sync.stage(1)
    assert case.failed == []
