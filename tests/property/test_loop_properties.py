"""The real loop under any order of arrivals, drops and skipped steps: it ends, in bounds, every group counts once."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError
from lwz_ray.grouping import MadeGroup
from lwz_ray.loop import Parts, TrainingLoop
from lwz_ray.records import Completion, Group, ParsedText, Prompt, Sample, StepResult, VersionSpan
from tests.loop_parts import PROMPTS, make_config


@cache
def base_config() -> Config:
    return make_config(
        Path(gettempdir()), failures={"max_consecutive_dropped_groups": 1000, "max_consecutive_skipped_steps": 1000}
    )


@dataclass
class World:
    """Everything around the loop: takes a random number of turns for everything, and writes down what it sees.

    As in a real run a sample begins some time after it was asked for and may live through updates.
    """

    config: Config
    turns: random.Random
    fails: float
    """Share of groups that the machines fail."""
    skips: float
    """Share of steps without an optimizer step."""
    drawn_out: float
    """Share of groups that take many times as long as the others."""
    served: int = 0
    versions: int = 0
    trained: list[int] = field(default_factory=list)
    staleness: list[int] = field(default_factory=list)
    loading: bool = False
    saved: list[tuple[dict[str, Any], list[MadeGroup], int]] = field(default_factory=list)

    async def pass_turns(self, most: int) -> None:
        for _ in range(self.turns.randint(0, most)):
            await asyncio.sleep(0)

    async def make(self, prompt: Prompt, group_id: int, num_samples: int, seed: int, round_index: int) -> MadeGroup:
        """Stands in for the group maker: the texts do not matter here, their versions do."""
        await self.pass_turns(60 if self.turns.random() < self.drawn_out else 4)
        first = self.served
        await self.pass_turns(400 if self.turns.random() < self.drawn_out else 8)
        if self.turns.random() < self.fails:
            raise InfrastructureError("an engine was lost")
        spans = (VersionSpan(0, 1, first), VersionSpan(1, 2, self.served))
        completion = Completion("w", np.zeros(2, np.int32), np.zeros(2, np.float32), "stop", spans)
        parsed = ParsedText(None, "w", True, 1.0)
        prompt_ids = np.zeros(1, np.int32)
        samples = [
            Sample(group_id, i, prompt, prompt_ids, completion, parsed, 1, {"length": i / 2.0, "format": 1.0})
            for i in range(num_samples)
        ]
        return MadeGroup(Group(group_id, prompt, tuple(samples)), 0.0, 0.0)

    async def train(self, minibatches: Sequence[Any]) -> StepResult:
        await self.pass_turns(20)
        if self.config.max_staleness == 0:
            assert not self.loading
        taken = int(self.turns.random() >= self.skips)
        return StepResult({}, taken, 1 - taken, 1)

    async def stage(self, policy_version: int) -> dict[str, float]:
        assert not self.loading and policy_version == self.versions + 1
        self.versions = policy_version
        await self.pass_turns(5)
        return {}

    async def load(self, policy_version: int) -> dict[str, float]:
        self.loading = True
        await self.pass_turns(30)
        self.served, self.loading = policy_version, False
        return {"weights/pause_s": 0.0}

    def log_step(self, metrics: dict[str, Any]) -> None:
        kept = sum(metrics[f"groups/{k}"] for k in ("trained", "dropped", "in_flight"))
        assert metrics["groups/admitted"] == kept
        self.staleness.append(int(metrics["staleness/max"]))

    def log_samples(self, samples: Sequence[Sample], advantages: Sequence[float], step: int, split: str) -> None:
        self.trained += sorted({s.group_id for s in samples})

    async def save(self, step: int, state: dict[str, Any], buffer: Sequence[MadeGroup], metrics: Any) -> None:
        self.saved.append((state, list(buffer), len(self.trained)))

    async def wait(self) -> None:
        pass

    async def evaluate(self, step: int) -> dict[str, float]:
        assert not self.loading and self.served == self.versions
        return {}

    def loop(self) -> TrainingLoop:
        world: Any = self
        return TrainingLoop(self.config, PROMPTS, Parts(world, world, world, world, world, self.evaluate))


WORLDS = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 12),
        "groups_per_step": st.integers(1, 4),
        "max_staleness": st.integers(0, 4),
        "on_stale": st.sampled_from(["wait", "drop"]),
        "fails": st.sampled_from([0.0, 0.2, 0.6]),
        "skips": st.sampled_from([0.0, 0.3, 0.9]),
        "drawn_out": st.sampled_from([0.0, 0.1, 0.5]),
        "evaluates": st.sampled_from([0, 1, 3]),
        "saves": st.integers(1, 4),
        "seed": st.integers(0, 2**32),
    }
)


def world_of(drawn: dict[str, Any]) -> World:
    """Return a world with the config that was drawn; the preset's other fields stay."""
    base = base_config()
    names = ("steps", "groups_per_step", "max_staleness", "on_stale")
    nodes = {
        "eval": base.eval.model_copy(update={"every_steps": drawn["evaluates"]}),
        "run": base.run.model_copy(update={"checkpoint_every_steps": drawn["saves"]}),
    }
    config = base.model_copy(update={**{n: drawn[n] for n in names}, **nodes})
    return World(config, random.Random(drawn["seed"]), drawn["fails"], drawn["skips"], drawn["drawn_out"])


def check(world: World, loop: TrainingLoop) -> None:
    """Assert what holds at the end of every run."""
    config, account = world.config, loop.ledger.as_dict()
    needed = config.steps * config.groups_per_step
    assert len(world.trained) == len(set(world.trained)) == needed
    assert max(world.staleness) <= config.max_staleness
    assert set(account["dropped"]) <= ({"failed_infrastructure"} | ({"stale"} if config.on_stale == "drop" else set()))
    # Each dropped group is made up for by exactly one other.
    assert account["admitted"] == needed + sum(account["dropped"].values())
    assert (account["trained"], account["in_flight"], account["rounds"]) == (needed, 0, config.steps)
    progress = loop.progress
    assert progress.step == config.steps == progress.optimizer_steps + progress.skipped_steps
    assert progress.policy_version == progress.optimizer_steps == world.versions == world.served


async def run(world: World, loop: TrainingLoop) -> None:
    """Run the loop to its end; the turns of a world come to far less than this."""
    await asyncio.wait_for(loop.run(asyncio.Event()), 60.0)


@settings(max_examples=150, deadline=None)
@given(WORLDS)
def test_every_world_comes_to_its_end(drawn: dict[str, Any]) -> None:
    world = world_of(drawn)

    async def whole() -> None:
        loop = world.loop()
        await run(world, loop)
        check(world, loop)

    asyncio.run(whole())


@settings(max_examples=75, deadline=None)
@given(WORLDS, st.data())
def test_every_checkpoint_can_be_gone_on_from(drawn: dict[str, Any], data: st.DataObject) -> None:
    world = world_of(drawn)

    async def whole() -> None:
        await run(world, world.loop())
        state, buffer, num_trained = data.draw(st.sampled_from(world.saved))
        world.trained = world.trained[:num_trained]
        world.staleness = world.staleness[: state["progress"]["step"]]
        loop = world.loop()
        loop.restore(state, buffer)
        world.served = world.versions = loop.progress.policy_version
        await run(world, loop)
        check(world, loop)

    asyncio.run(whole())
