"""A learner group on Ray that loses a rank: it is named, whatever the others say first, and the group comes back."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from launch.compose import compose
from launch.learner_room import LearnerRoom, learner_settings
from launch.learning import LearningSide
from lwz_ray.errors import LearnerLostError
from tests.learner_parts import batch

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PATIENCE_S = 60.0
FROZEN_S = 4.0
CPUS = {"num_cpus": 0.1}


class Group:
    """Two ranks of the tiny model."""

    def __init__(self, model: Path, folder: Path) -> None:
        words = [
            "run=smoke_cpu",
            f"run.dir={folder}",
            f"model.path={model}",
            "optimizer.lr=0.02",
            "optimizer.warmup_steps=0",
            "failures.heartbeat_every_s=0.5",
            f"failures.heartbeat_timeout_s={FROZEN_S}",
        ]
        config = compose(words)
        settings = learner_settings(config, ("/dev/shm", "/tmp"), 2**26)
        self.room = LearnerRoom("learner", settings, [CPUS, CPUS], config)
        self.side = LearningSide(self.room)

    async def train(self, steps: int) -> None:
        for step in range(steps):
            await self.side.learner.train([batch(seed=step)])

    async def logprobs(self) -> list[Any]:
        """Return what the present weights say of a few tokens."""
        facts = await self.side.learner.annotate(batch(seed=9))
        return [f.old_logprobs.tolist() for f in facts if f.old_logprobs is not None]

    async def lost(self, work: Awaitable[Any]) -> str:
        """Return what the loss says that ends the work."""
        with pytest.raises(LearnerLostError) as caught:
            await asyncio.wait_for(self.side.guard(work), PATIENCE_S)
        return str(caught.value)

    async def gone(self, pids: list[int]) -> None:
        """Wait for processes to end, frozen ones too."""
        end = time.monotonic() + PATIENCE_S
        while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            assert time.monotonic() < end, f"of the processes {pids} some live"
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def group(
    ray_cluster: None, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Group]:
    made = Group(tiny_model_dir, tmp_path_factory.mktemp("runs"))
    made.side.create()
    await made.side.start()
    yield made
    await made.side.close()


async def test_a_killed_rank_is_named_and_the_group_comes_back(group: Group, tmp_path: Path):
    """The rank that lives fails first, of a closed connection; the loss is the other's."""
    await group.train(2)
    saved = await group.logprobs()
    await group.side.learner.save(str(tmp_path))
    await group.side.learner.finish_save()
    before = list(group.room.pids)

    async def killed_in_training() -> None:
        await group.train(1)
        os.kill(before[1], signal.SIGKILL)
        await group.train(10**6)

    said = await group.lost(killed_in_training())
    assert said.startswith("learner rank 1 was lost: The actor is dead because its worker process has died."), said
    await asyncio.wait_for(group.side.restart(), PATIENCE_S)
    await group.gone(before)
    assert set(group.room.pids).isdisjoint(before)
    assert await group.logprobs() != saved
    await group.side.learner.load(str(tmp_path))
    assert await group.logprobs() == saved


async def test_a_frozen_rank_is_killed(group: Group):
    """Nobody asks the learners for anything; the heartbeat alone finds it. The processes end."""
    frozen, other = group.room.pids
    os.kill(frozen, signal.SIGSTOP)
    said = await group.lost(asyncio.sleep(PATIENCE_S))
    assert said == (
        f"learner rank 0 was lost: no sign of life for {FROZEN_S:g} s (failures.heartbeat_timeout_s), so it was killed"
    )
    with pytest.raises(LearnerLostError, match="learner rank 0 was lost: "):
        await group.side.learner.train([batch()])
    await asyncio.wait_for(group.side.restart(), PATIENCE_S)
    await group.gone([frozen, other])
    await group.train(1)


async def test_an_error_of_living_ranks_is_no_loss(group: Group, tmp_path: Path):
    with pytest.raises(Exception, match=r"trainer\.json|No such file") as caught:
        await group.side.guard(group.side.learner.load(str(tmp_path / "missing")))
    assert not isinstance(caught.value, LearnerLostError)
    assert group.room.loss is None
