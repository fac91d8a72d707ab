"""The supervised loop over a learner that writes down what it was given."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.compose import compose
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, UserError
from lwz_ray.preference_loop import PreferenceLoop, PreferenceParts
from lwz_ray.preferences import EncodedPair
from lwz_ray.records import StepResult

SOURCES = ["a", "a", "b", "b", "c"]


class Recorder:
    """A learner, a tracker and a checkpoint store in one: keeps every call."""

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.batches: list[list[int]] = []
        self.lines: list[dict[str, Any]] = []
        self.saved: dict[int, dict[str, Any]] = {}
        self.evaluations = 0
        self.stop_at: tuple[int, asyncio.Event] | None = None

    async def train(self, minibatches: Sequence[Sequence[EncodedPair]]) -> StepResult:
        (batch,) = minibatches
        self.batches.append([int(pair.head[0]) for pair in batch])
        if self.stop_at and len(self.batches) == self.stop_at[0]:
            self.stop_at[1].set()
        return StepResult({"train/loss": 0.5}, 0 if self.skip else 1, int(self.skip), 30)

    async def save(self, step: int, state: dict[str, Any], buffer: Sequence[Any], metrics: Mapping[str, Any]) -> None:
        assert list(buffer) == []
        self.saved[step] = state

    async def load(self, folder: str) -> None: ...

    async def export(self, folder: str) -> None: ...

    async def evaluate(self) -> dict[str, float]:
        self.evaluations += 1
        return {"preference/accuracy": 0.75}


def pairs(count: int = 5, length: int = 3) -> list[EncodedPair]:
    body = np.ones(length, dtype=np.int32)
    return [EncodedPair(np.array([i], dtype=np.int32), body, body, 0.0, 0.5) for i in range(count)]


def config(tmp_path: Path, *words: str) -> Config:
    given = ["run=rm_demo", f"run.dir={tmp_path}", "steps=7", "preference.pairs_per_step=2"]
    return compose([*given, "run.checkpoint_every_steps=3", *words])


def build(settings: Config, recorder: Any, items: list[EncodedPair] | None = None) -> PreferenceLoop:
    parts = PreferenceParts(recorder, lambda m: recorder.lines.append(dict(m)), recorder, recorder.evaluate)
    return PreferenceLoop(settings, items or pairs(), SOURCES, parts)


async def test_every_epoch_takes_every_pair_once(tmp_path: Path):
    recorder = Recorder()
    loop = build(config(tmp_path), recorder)
    await loop.run(asyncio.Event())
    taken = [i for batch in recorder.batches for i in batch]
    assert [len(b) for b in recorder.batches] == [2] * 7
    assert sorted(taken[:5]) == sorted(taken[5:10]) == [0, 1, 2, 3, 4]
    assert [(m["step"], m["policy_version"]) for m in recorder.lines] == [(i, i) for i in range(1, 8)]
    assert [m["train/epoch"] for m in recorder.lines][:3] == [0.4, 0.8, 1.2]
    assert sorted(recorder.saved) == [3, 6, 7]
    assert (loop.progress.pairs_trained, loop.progress.tokens_trained) == (14, 210)
    assert recorder.evaluations == 0


async def test_a_resumed_run_goes_on_with_the_next_pairs(tmp_path: Path):
    settings = config(tmp_path)
    whole = Recorder()
    await build(settings, whole).run(asyncio.Event())
    first, stop = Recorder(), asyncio.Event()
    first.stop_at = (4, stop)
    loop = build(settings, first)
    loop.keep("before", {"accuracy": 0.5})
    await loop.run(stop)
    assert sorted(first.saved) == [3, 4]
    second = Recorder()
    resumed = build(settings, second)
    resumed.restore(first.saved[4])
    assert resumed.kept("before") == {"accuracy": 0.5}
    assert resumed.kept("after") is None
    await resumed.run(asyncio.Event())
    assert first.batches + second.batches == whole.batches
    assert resumed.progress.pairs_trained == 14
    # A run that was already complete writes nothing again.
    third = Recorder()
    done = build(settings, third)
    done.restore(second.saved[7])
    await done.run(asyncio.Event())
    assert (third.batches, third.saved) == ([], {})


async def test_other_pairs_do_not_continue_a_checkpoint(tmp_path: Path):
    recorder = Recorder()
    await build(config(tmp_path), recorder).run(asyncio.Event())
    for words, items in ((("seed=2",), pairs()), (("preference.pairs_per_step=3",), pairs()), ((), pairs(length=4))):
        with pytest.raises(UserError, match="the training pairs are not those of the checkpoint"):
            build(config(tmp_path, *words), Recorder(), items).restore(recorder.saved[7])


async def test_evaluation_during_training(tmp_path: Path):
    recorder = Recorder()
    await build(config(tmp_path, "eval.every_steps=3"), recorder).run(asyncio.Event())
    assert [m["step"] for m in recorder.lines if "preference/accuracy" in m] == [3, 6]


async def test_steps_that_are_not_finite_end_the_run(tmp_path: Path):
    recorder = Recorder(skip=True)
    loop = build(config(tmp_path, "failures.max_consecutive_skipped_steps=3"), recorder)
    with pytest.raises(InfrastructureError, match="3 optimizer steps in a row had a loss or gradient"):
        await loop.run(asyncio.Event())
    assert (loop.progress.skipped_steps, loop.progress.policy_version) == (3, 0)
    assert list(recorder.saved) == [3] and recorder.lines[-1]["step"] == 3


async def test_a_run_stopped_before_its_first_step_leaves_no_checkpoint(tmp_path: Path):
    recorder, stop = Recorder(), asyncio.Event()
    stop.set()
    await build(config(tmp_path), recorder).run(stop)
    assert (recorder.batches, recorder.saved) == ([], {})
