"""What `stage=pretrain` and `stage=sft` share: from batches, through the objective `language_model`, to an export."""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from launch.checkpoints import CheckpointStore, model_identity
from launch.console_supervised import SupervisedTable
from launch.held_out import HeldOut
from launch.hub import with_local_models
from launch.lease import Lease
from launch.preflight_corpus import check_schedule
from launch.recovery import Recovery
from launch.report import write_report
from launch.rooms import Rooms
from launch.run_folder import RunFolder
from launch.stages.lifecycle import Lifecycle, leased
from launch.summary import GroupCounts, RunSummary, Status
from launch.trackers import MultiTracker, build_trackers
from lwz_ray.config import Config
from lwz_ray.failures import FailureLog, budgets_of
from lwz_ray.supervised import SupervisedBatches
from lwz_ray.supervised_loop import SupervisedLoop, SupervisedParts
from lwz_ray.token_budget import TokenBudget

Load = Callable[[Config, Any], SupervisedBatches]
"""(config, tokenizer) -> the stage's data; raises UserError for what cannot be read."""


def run_supervised(config: Config, load: Load, budget: TokenBudget, tokens_per_step: float | None) -> int:
    """Run the stage; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary.

    tokens_per_step: trained tokens of a step, which say when a falling rate ends; None: of chat pairs, which are walked
    through for it, and refused (UserError) where the rate would never fall.
    """
    config = with_local_models(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    batches = load(config, tokenizer)
    if tokens_per_step is None:
        steps = steps_of(batches, budget)
        check_schedule(config, f"{config.stage}.lr_schedule", config.sft.lr_schedule, steps)
    else:
        steps = budget.planned_steps(tokens_per_step)
    with leased(config) as lease:
        store = CheckpointStore(
            Path(config.run.dir) / config.run.name / "checkpoints", model_identity(config.model.path), config.run,
            config.learners.step_timeout_s, lease.check,
        )  # fmt: skip
        newest = store.newest() if config.run.resume == "auto" else None
        folder = RunFolder.open(config, lease=lease)
        stage = SupervisedStage(config, lease, folder, batches, budget, steps, store, newest)
        return asyncio.run(stage.run())


def steps_of(batches: SupervisedBatches, budget: TokenBudget) -> int:
    """Return the steps until the budget is used up, by taking them; the batches stand afterwards where they stood."""
    if budget.max_tokens is None:
        return budget.steps
    start, step, tokens = batches.state(), 0, 0
    while not budget.reached(step, tokens):
        tokens += sum(sample.num_trained for sample in batches.next())
        step += 1
    batches.restore(start)
    return step


class SupervisedStage:
    """One job of a run: its learners, its attempts, and its summary."""

    def __init__(
        self,
        config: Config,
        lease: Lease,
        folder: RunFolder,
        batches: SupervisedBatches,
        budget: TokenBudget,
        steps: int,
        store: CheckpointStore,
        newest: Path | None,
    ) -> None:
        """batches: at their beginning; steps: as many as are foreseen; newest: the checkpoint to go on from."""
        self.config, self.folder = config, folder
        self.batches, self.budget, self.store, self.newest = batches, budget, store, newest
        self._foreseen = config.model_copy(update={"steps": steps})
        self._begin = batches.state()
        self._held_out = HeldOut(config, batches) if len(batches.held_out) else None
        self._started = time.monotonic()
        self.failures = FailureLog(budgets_of(config.failures), folder.warn)
        self._life = Lifecycle(config, lease)
        self._reached = 0
        self._loop: SupervisedLoop | None = None
        self._tracker: MultiTracker | None = None
        self._measured: dict[str, Any] = {}

    async def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        return await self._life.run(self._work, self._end)

    async def _work(self) -> None:
        say = self._life.say
        say(f"run folder: {self.folder.path}")
        say(f"sources: {', '.join(self.batches.names)}; {len(self.batches.held_out)} held-out samples")
        self._life.connect()
        say(f"starting learners (Ray's logs: {self._life.logs})")
        rooms = Rooms(self._foreseen, 0, failures=self.failures)  # nothing is published in these stages
        try:
            await rooms.start()
            assert rooms.learning is not None
            recovery = Recovery(rooms.learning, rooms.restart_learners, self.folder, self.store, self.failures, say)
            await recovery.run(partial(self._attempt, rooms), self.newest, self._life.stop)
        finally:
            if unfinished := await self.store.end():
                self.folder.warn("checkpoint", unfinished)
            await rooms.close()

    async def _attempt(self, rooms: Rooms, newest: Path | None) -> None:
        """Go on from a checkpoint, or from the beginning, to the end of the stage or until a stop is asked for."""
        self.store.attach(rooms.learner)
        self.batches.restore(self._begin)

        async def evaluate() -> dict[str, float]:
            return {} if self._held_out is None else await self._held_out.numbers(rooms.learner)

        parts = SupervisedParts(rooms.learner, self._log_step, self.store, evaluate)
        loop = SupervisedLoop(self.config, self.budget, self.batches, parts)
        if newest is not None:
            loop.restore((await self.store.load(newest))[0])
        start_step = loop.progress.step
        if self.folder.attempt > 1:
            self.folder.mark_superseded(start_step if newest is not None else None, self._reached)
        self._loop, self._reached = loop, start_step
        try:
            await self._train(rooms, loop)
        finally:
            self._reached = max(self._reached, loop.progress.step)

    async def _train(self, rooms: Rooms, loop: SupervisedLoop) -> None:
        if self._held_out is not None and loop.kept("before") is None:
            self._life.say("held-out perplexity before training")
            loop.keep("before", (await self._held_out.score(rooms.learner)).nll.tolist())
        self._measure("before", loop.kept("before"))
        if self._tracker is None:
            self._tracker = build_trackers(self._foreseen, self.folder, loop.progress.step)
        self._life.graceful = True
        try:
            await loop.run(self._life.stop)
            await self.store.wait()
        finally:
            self._life.graceful = False
        if self._life.stop.is_set():
            return
        if self._held_out is None:
            self._measure("after", None)
        else:
            self._life.say("held-out perplexity after training")
            after = await self._held_out.score(rooms.learner)
            self._measure("after", after.nll.tolist())
            before = self._held_out.scores(np.asarray(loop.kept("before")))
            self._measured["difference"] = self._held_out.compare(before, after)
        await self.folder.replace_export(rooms.learner.export)
        self._life.finished = True

    def _measure(self, when: str, nll: list[float] | None) -> None:
        """Keep what the summary says of the held-out samples `before` or `after`."""
        if self._held_out is None or nll is None:
            self._measured[when] = {"not_measured": f"stage={self.config.stage} was given no held-out texts"}
        else:
            self._measured[when] = self._held_out.measure(self._held_out.scores(np.asarray(nll)))

    def _log_step(self, metrics: Mapping[str, Any]) -> None:
        assert self._tracker is not None
        self._tracker.log_step(metrics)

    def _end(self, status: Status, error: str | None) -> None:
        if self._tracker is not None:
            self._tracker.close()
        summary = self._summary(status, error)
        self.folder.write_summary(summary)
        SupervisedTable().show(summary.as_dict(), self.folder.path, write_report(self.folder.path))

    def _summary(self, status: Status, error: str | None) -> RunSummary:
        progress = self._loop.progress if self._loop else None
        samples = progress.samples_trained if progress else 0
        return RunSummary(
            stage=self.config.stage,
            status=status,
            steps=progress.step if progress else 0,
            skipped_steps=progress.skipped_steps if progress else 0,
            policy_version=progress.policy_version if progress else 0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(admitted=samples, trained=samples, dropped={}, in_flight=0),
            tokens_generated=0,
            tokens_trained=progress.tokens_trained if progress else 0,
            active_rewards=(),
            error=error,
            failures=self.failures.counts,
            restarts=self.folder.restarts,
            lost_steps=self.folder.lost_steps,
            measured={
                self.config.stage: {
                    "foreseen_steps": self._foreseen.steps,
                    "max_tokens": self.budget.max_tokens,
                    "data": self._loop.counts if self._loop else dict(self.batches.counts),
                    **self._measured,
                }
            },
        )
