"""The supervised loop over a learner that writes down what it was given, and over real documents."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.compose import compose
from lwz_ray.config import Config
from lwz_ray.errors import UserError, WaitTimeoutError
from lwz_ray.failures import BudgetExceededError
from lwz_ray.records import StepResult, TrainSample
from lwz_ray.supervised_loop import SupervisedLoop, SupervisedParts
from lwz_ray.token_budget import TokenBudget


class Numbers:
    """Batches of two samples that hold 0, 1, 2, … ; every one trains 5 tokens."""

    names = ("a", "b")
    held_out: Sequence[TrainSample] = ()
    held_out_texts: Sequence[int] = ()

    def __init__(self, digest: str = "d", bad_at: int | None = None, hold: threading.Event | None = None) -> None:
        self.digest, self._bad_at, self._hold = digest, bad_at, hold
        self.position = 0

    @property
    def counts(self) -> dict[str, Any]:
        return {"a": {"given": self.position}}

    def next(self) -> list[TrainSample]:
        if self._hold is not None:
            self._hold.wait(20)
        if self._bad_at is not None and self.position >= self._bad_at:
            raise UserError(f"row {self.position} is bad")
        self.position += 2
        return [sample(self.position - 2), sample(self.position - 1)]

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


def sample(number: int) -> TrainSample:
    mask, nothing = np.arange(6) >= 1, np.zeros(6, np.float32)
    return TrainSample(np.full(6, number, dtype=np.int32), 1, mask, nothing, nothing, 0.1, source=number % 2)


class Recorder:
    """A learner, a tracker and a checkpoint store in one: keeps every call."""

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.batches: list[list[int]] = []
        self.lines: list[dict[str, Any]] = []
        self.saved: dict[int, dict[str, Any]] = {}
        self.evaluations = 0
        self.stop_at: tuple[int, asyncio.Event] | None = None

    async def train(self, minibatches: Sequence[Sequence[TrainSample]]) -> StepResult:
        (batch,) = minibatches
        self.batches.append([int(s.token_ids[0]) for s in batch])
        if self.stop_at and len(self.batches) == self.stop_at[0]:
            self.stop_at[1].set()
        tokens = 0 if self.skip else sum(s.num_trained for s in batch)
        return StepResult({"train/loss": 0.5}, 0 if self.skip else 1, int(self.skip), tokens)

    async def save(self, step: int, state: dict[str, Any], buffer: Sequence[Any], metrics: Mapping[str, Any]) -> None:
        assert list(buffer) == []
        self.saved[step] = state

    async def evaluate(self) -> dict[str, float]:
        self.evaluations += 1
        return {"validation/loss": 2.0}


def config(tmp_path: Path, *words: str) -> Config:
    return compose(["stage=pretrain", f"run.dir={tmp_path}", "steps=7", "run.checkpoint_every_steps=3", *words])


def build(
    settings: Config, recorder: Any, batches: Numbers | None = None, max_tokens: int | None = None
) -> SupervisedLoop:
    parts = SupervisedParts(recorder, lambda m: recorder.lines.append(dict(m)), recorder, recorder.evaluate)
    return SupervisedLoop(settings, TokenBudget(settings.steps, max_tokens), batches or Numbers(), parts)


async def test_every_step_takes_the_next_samples(tmp_path: Path):
    recorder = Recorder()
    loop = build(config(tmp_path, "eval.every_steps=3"), recorder)
    await loop.run(asyncio.Event())
    assert recorder.batches == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13]]
    assert [(m["step"], m["policy_version"]) for m in recorder.lines] == [(i, i) for i in range(1, 8)]
    assert [m["train/total_tokens"] for m in recorder.lines] == [10, 20, 30, 40, 50, 60, 70]
    assert [m["step"] for m in recorder.lines if "validation/loss" in m] == [3, 6]
    assert {m["train/samples"] for m in recorder.lines} == {2}
    assert sorted(recorder.saved) == [3, 6, 7]
    # What is read ahead is not what was trained.
    assert [recorder.saved[s]["data"] for s in (3, 6, 7)] == [{"position": p} for p in (6, 12, 14)]
    assert loop.counts == {"a": {"given": 14}}
    assert (loop.progress.samples_trained, loop.progress.tokens_trained) == (14, 70)


async def test_a_token_budget_ends_with_the_step_that_reaches_it(tmp_path: Path):
    for budget, steps in ((30, 3), (31, 4), (1000, 7)):
        recorder = Recorder()
        loop = build(config(tmp_path, "eval.every_steps=1"), recorder, max_tokens=budget)
        await loop.run(asyncio.Event())
        assert (len(recorder.batches), max(recorder.saved)) == (steps, steps)
        # The last step's weights are evaluated by whoever runs the loop.
        assert recorder.evaluations == steps - 1


async def test_a_resumed_run_goes_on_with_the_next_samples(tmp_path: Path):
    settings = config(tmp_path)
    whole = Recorder()
    await build(settings, whole).run(asyncio.Event())
    first, stop = Recorder(), asyncio.Event()
    first.stop_at = (4, stop)
    loop = build(settings, first)
    loop.keep("before", [1.5])
    await loop.run(stop)
    assert sorted(first.saved) == [3, 4]
    second = Recorder()
    resumed = build(settings, second)
    resumed.restore(first.saved[4])
    assert (resumed.kept("before"), resumed.kept("after"), resumed.counts) == ([1.5], None, {"a": {"given": 8}})
    await resumed.run(asyncio.Event())
    assert first.batches + second.batches == whole.batches
    assert resumed.progress.tokens_trained == 70
    # A run that was already complete trains and writes nothing again.
    third = Recorder()
    done = build(settings, third)
    done.restore(second.saved[7])
    await done.run(asyncio.Event())
    assert (third.batches, third.saved) == ([], {})


async def test_other_data_does_not_continue_a_checkpoint(tmp_path: Path):
    recorder = Recorder()
    await build(config(tmp_path), recorder).run(asyncio.Event())
    with pytest.raises(UserError, match=r"the training data of stage=pretrain is not that of the checkpoint"):
        build(config(tmp_path), Recorder(), Numbers("e")).restore(recorder.saved[7])


async def test_a_bad_row_loses_nothing_that_was_trained(tmp_path: Path):
    recorder = Recorder()
    with pytest.raises(UserError, match="row 10 is bad"):
        await build(config(tmp_path), recorder, Numbers(bad_at=10)).run(asyncio.Event())
    assert len(recorder.batches) == 5
    assert recorder.saved[5]["progress"]["tokens_trained"] == 50


async def test_data_that_does_not_come_is_named(tmp_path: Path):
    hold = threading.Event()
    loop = build(config(tmp_path, "learners.step_timeout_s=0.2"), Recorder(), Numbers(hold=hold))
    with pytest.raises(WaitTimeoutError, match=r"waited 0.2 s for the data of step 1"):
        await loop.run(asyncio.Event())
    hold.set()


async def test_steps_that_are_not_finite_end_the_run(tmp_path: Path):
    recorder = Recorder(skip=True)
    loop = build(config(tmp_path, "failures.max_consecutive_skipped_steps=3"), recorder, max_tokens=30)
    with pytest.raises(BudgetExceededError, match="3 optimizer steps in a row had a loss or gradient"):
        await loop.run(asyncio.Event())
    assert (loop.progress.skipped_steps, loop.progress.policy_version, loop.progress.tokens_trained) == (3, 0, 0)
    assert len(recorder.lines) == 3


async def test_a_run_stopped_before_its_first_step_leaves_no_checkpoint(tmp_path: Path):
    recorder, stop = Recorder(), asyncio.Event()
    stop.set()
    await build(config(tmp_path), recorder).run(stop)
    assert (recorder.batches, recorder.saved) == ([], {})
