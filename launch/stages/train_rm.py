"""`stage=train_rm`: a scalar head learns preferences; what it learned is measured on sources it never saw."""

import asyncio
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from launch.checkpoints import CheckpointStore, model_identity
from launch.console_preference import PreferenceTable
from launch.hub import with_local_models
from launch.lease import Lease
from launch.preference_evaluator import PreferenceEvaluator
from launch.recovery import Recovery
from launch.report import write_report
from launch.rooms import Rooms
from launch.run_folder import RunFolder
from launch.stages.lifecycle import Lifecycle, leased
from launch.summary import GroupCounts, RunSummary, Status
from launch.trackers import MultiTracker, build_trackers
from lwz_ray.config import Config
from lwz_ray.failures import FailureLog, budgets_of
from lwz_ray.pair_encoding import PairEncoder
from lwz_ray.preference_data import PairSet, prepare_pairs
from lwz_ray.preference_eval import PairScores
from lwz_ray.preference_loop import PreferenceLoop, PreferenceParts

BEFORE_PAIRS = 64
"""Held-out pairs scored before training where the head is new: enough to see chance, and cheap."""

LIFTED = ("by_kind", "calibration", "by_length_difference", "length_correlation", "matched")
"""Measures of the evaluation after training that stand by themselves in `summary.json`."""


def run(config: Config) -> int:
    """Run the stage; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    config = with_local_models(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    train, held_out, rows = prepare_pairs(
        config.preference, config.seed, PairEncoder(tokenizer), config.model.max_length_tokens
    )
    with leased(config) as lease:
        store = CheckpointStore(
            Path(config.run.dir) / config.run.name / "checkpoints", model_identity(config.model.path), config.run,
            config.learners.step_timeout_s, lease.check,
        )  # fmt: skip
        newest = store.newest() if config.run.resume == "auto" else None
        folder = RunFolder.open(config, lease=lease)
        return asyncio.run(PreferenceStage(config, lease, folder, train, held_out, rows, store, newest).run())


class PreferenceStage:
    """One job of a run: its learners, its attempts, and its summary."""

    def __init__(
        self,
        config: Config,
        lease: Lease,
        folder: RunFolder,
        train: PairSet,
        held_out: PairSet,
        rows: Mapping[str, int],
        store: CheckpointStore,
        newest: Path | None,
    ) -> None:
        """rows: counts of the sources' rows; newest: the checkpoint to go on from."""
        self.config, self.folder = config, folder
        self.train, self.held_out, self.rows = train, held_out, rows
        self.store, self.newest = store, newest
        self._started = time.monotonic()
        self.failures = FailureLog(budgets_of(config.failures), folder.warn)
        self._life = Lifecycle(config, lease)
        self._reached = 0
        self._loop: PreferenceLoop | None = None
        self._tracker: MultiTracker | None = None
        self._measured: dict[str, Any] = {}

    async def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        return await self._life.run(self._work, self._end)

    async def _work(self) -> None:
        say = self._life.say
        say(f"run folder: {self.folder.path}")
        for name, side in (("training", self.train), ("held-out", self.held_out)):
            say(f"{name} pairs: {side.counts['kept']} of {side.counts['pairs']} ({side.counts['sources']} sources)")
        self._life.connect()
        say(f"starting learners (Ray's logs: {self._life.logs})")
        rooms = Rooms(self.config, 0, failures=self.failures)  # nothing is published in this stage
        try:
            await rooms.start()
            assert rooms.learning is not None
            recovery = Recovery(
                rooms.learning, rooms.restart_learners, self.folder, self.store, self.failures, self._life.say
            )
            await recovery.run(partial(self._attempt, rooms), self.newest, self._life.stop)
        finally:
            if unfinished := await self.store.end():
                self.folder.warn("checkpoint", unfinished)
            await rooms.close()

    async def _attempt(self, rooms: Rooms, newest: Path | None) -> None:
        """Go on from a checkpoint, or from the beginning, to the end of the stage or until a stop is asked for."""
        config, evaluator = self.config, PreferenceEvaluator(self.config, self.train, self.held_out, rooms.learner)
        self.store.attach(rooms.learner)
        sources = [p.source for p in self.train.pairs]
        parts = PreferenceParts(rooms.learner, self._log_step, self.store, evaluator.numbers)
        loop = PreferenceLoop(config, self.train.encoded, sources, parts)
        if newest is not None:
            loop.restore((await self.store.load(newest))[0])
        start_step = loop.progress.step
        if self.folder.attempt > 1:
            self.folder.mark_superseded(start_step if newest is not None else None, self._reached)
        self._loop, self._reached = loop, start_step
        try:
            await self._train(rooms, loop, evaluator)
        finally:
            self._reached = max(self._reached, loop.progress.step)

    async def _train(self, rooms: Rooms, loop: PreferenceLoop, evaluator: PreferenceEvaluator) -> None:
        config = self.config
        if loop.kept("before") is None:
            limit = BEFORE_PAIRS if is_new_head(config.model.path) else None
            self._life.say("scoring held-out pairs before training")
            before = evaluator.measure(await evaluator.score(limit))
            loop.keep("before", {k: v for k, v in before.items() if k not in LIFTED})
        self._measured["before"] = loop.kept("before")
        if self._tracker is None:
            self._tracker = build_trackers(config, self.folder, loop.progress.step)
        self._life.graceful = True
        try:
            await loop.run(self._life.stop)
            await self.store.wait()
        finally:
            self._life.graceful = False
        if self._life.stop.is_set():
            return
        self._life.say(f"scoring {len(self.held_out.pairs)} held-out pairs after training")
        await self._measure(evaluator)
        await self.folder.replace_export(rooms.learner.export)
        self._life.finished = True

    async def _measure(self, evaluator: PreferenceEvaluator) -> None:
        assert self._loop is not None
        scores: PairScores = await evaluator.score()
        progress = self._loop.progress
        self.folder.append_lines(evaluator.lines(scores, progress.step, progress.policy_version))
        after = evaluator.measure(scores)
        self._measured |= {name: after.pop(name) for name in LIFTED}
        self._measured |= {"after": after, "baseline_length": evaluator.baseline(scores)}

    def _log_step(self, metrics: Mapping[str, Any]) -> None:
        assert self._tracker is not None
        self._tracker.log_step(metrics)

    def _end(self, status: Status, error: str | None) -> None:
        if self._tracker is not None:
            self._tracker.close()
        summary = self._summary(status, error)
        self.folder.write_summary(summary)
        PreferenceTable().show(summary.as_dict(), self.folder.path, write_report(self.folder.path))

    def _summary(self, status: Status, error: str | None) -> RunSummary:
        progress = self._loop.progress if self._loop else None
        pairs = progress.pairs_trained if progress else 0
        train = {
            **self.train.counts,
            "tokens": self.train.num_tokens,
            "consumed": pairs,
            "epochs": pairs / len(self.train.pairs),
        }
        return RunSummary(
            stage="train_rm",
            status=status,
            steps=progress.step if progress else 0,
            skipped_steps=progress.skipped_steps if progress else 0,
            policy_version=progress.policy_version if progress else 0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(admitted=pairs, trained=pairs, dropped={}, in_flight=0),
            tokens_generated=0,
            tokens_trained=progress.tokens_trained if progress else 0,
            active_rewards=(),
            error=error,
            failures=self.failures.counts,
            restarts=self.folder.restarts,
            lost_steps=self.folder.lost_steps,
            measured={
                "preference": {
                    "rows": dict(self.rows),
                    "train": train,
                    "held_out": self.held_out.counts,
                    **self._measured,
                }
            },
        )


def is_new_head(model_path: str) -> bool:
    """Say whether a folder holds a language model, which gets a new head, and not a reward model."""
    found = json.loads(Path(model_path, "config.json").read_text(encoding="utf-8"))
    return not (found.get("architectures") or [""])[0].endswith("ForSequenceClassification")
