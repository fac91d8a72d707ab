"""`stage=rl`: evaluate, train, evaluate again, and leave a run folder that explains itself."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from launch.checkpoints import CheckpointStore, model_identity
from launch.console import ConsoleSamples, ConsoleTable
from launch.control import ControlWatcher
from launch.evaluator import Evaluator
from launch.hub import with_local_models
from launch.report import write_report
from launch.report_data import first_pairs
from launch.rooms import Rooms
from launch.run_folder import RunFolder
from launch.scorers import Scorers
from launch.stages.lifecycle import Lifecycle
from launch.summary import GroupCounts, RunSummary, Status
from launch.trackers import MultiTracker, build_trackers
from lwz_ray.config import Config
from lwz_ray.data import PromptSet, load_eval_prompts, load_prompts
from lwz_ray.encoding import PromptEncoder
from lwz_ray.evaluation import EvalSummary, compare
from lwz_ray.grouping import GroupMaker
from lwz_ray.loop import Parts, TrainingLoop
from rewards.judge import check_references

log = logging.getLogger(__name__)

CONSOLE_SAMPLES = 3


def run(config: Config) -> int:
    """Run the stage; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    config = with_local_models(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    encoder = PromptEncoder(tokenizer, config.template)
    prompts = load_prompts(config.data, config.rewards.length.on_missing_range, encoder.num_tokens)
    held_out = load_eval_prompts(config, encoder.num_tokens)
    if config.judge.base_url is not None:
        check_references(config.judge, [*prompts.prompts, *held_out.prompts])
    store = CheckpointStore(
        Path(config.run.dir) / config.run.name / "checkpoints", model_identity(config.model.path), config.run,
        config.learners.step_timeout_s,
    )  # fmt: skip
    newest = store.newest() if config.run.resume == "auto" else None
    folder = RunFolder.open(config)
    stage = RlStage(config, folder, encoder, prompts, held_out, store, newest)
    return asyncio.run(stage.run())


class RlStage:
    """One attempt of a run."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        encoder: PromptEncoder,
        prompts: PromptSet,
        held_out: PromptSet,
        store: CheckpointStore,
        newest: Path | None,
    ) -> None:
        self.config, self.folder, self.encoder = config, folder, encoder
        self.prompts, self.held_out = prompts, held_out
        self.store, self.newest = store, newest
        self._started = time.monotonic()
        self._life = Lifecycle(config)
        self._loop: TrainingLoop | None = None
        self._tracker: MultiTracker | None = None
        self._evaluation: dict[str, Any] | None = None

    async def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        return await self._life.run(self._work, self._end)

    async def _work(self) -> None:
        say = self._life.say
        say(f"run folder: {self.folder.path}")
        if self.prompts.counts["kept"] != self.prompts.counts["read"]:
            say(f"prompts: {self.prompts.counts}")
        self._life.connect()
        say(f"starting engines and learners (Ray's logs: {self._life.logs})")
        rooms = Rooms(self.config, _model_bytes(self.config.model.path), self.folder.warn)
        control = ControlWatcher(self.folder.path, {"rewards.replicas": rooms.scale_rewards}, rooms.scale_timeout_s)
        try:
            await rooms.start()
            await control.start()
            assert rooms.scorers is not None
            await rooms.scorers.check()
            await self._train(rooms, rooms.scorers)
        finally:
            if unfinished := await self.store.end():
                self.folder.warn("checkpoint", unfinished)
            await control.stop()
            await rooms.close()

    async def _train(self, rooms: Rooms, scorers: Scorers) -> None:
        config = self.config
        maker = GroupMaker(rooms.rollouts, scorers.rewards, self.encoder, config.template)
        evaluator = Evaluator(config, maker, self.held_out.prompts)
        self.store.attach(rooms.learner, rooms.critic)
        self._loop = loop = TrainingLoop(
            config,
            self.prompts.prompts,
            Parts(
                maker,
                rooms.learner,
                rooms.weights,
                _Late(self),
                self.store,
                evaluator.numbers,
                scorers.metrics,
                rooms.critic,
            ),
        )
        if self.newest is not None:
            state, buffer = await self.store.load(self.newest)
            loop.restore(state, buffer)
            await rooms.weights.publish(loop.progress.policy_version)
        start_step = loop.progress.step
        if self.folder.attempt > 1:
            self.folder.mark_superseded(start_step if self.newest is not None else None)
        before = self.folder.read_evaluation("before") if self.newest is not None else None
        if before is None:
            self._life.say(f"evaluating {config.eval.num_prompts} held-out prompts before training")
            before = await self._evaluate(evaluator, "before")
        evaluator.before = before
        self._tracker = build_trackers(config, self.folder, start_step)
        self._life.graceful = True
        await loop.run(self._life.stop)
        self._life.graceful = False
        if self._life.stop.is_set():
            return
        self._life.say("evaluating the same prompts after training")
        after = await self._evaluate(evaluator, "after")
        self._evaluation = compare(before, after, config.eval.bootstrap_resamples, config.seed)
        self._evaluation |= evaluator.drift(after)
        await self.folder.replace_export(rooms.learner.export)
        self._life.finished = True

    async def _evaluate(self, evaluator: Evaluator, when: str) -> EvalSummary:
        step = self._loop.progress.step if self._loop else 0
        summary, groups = await evaluator.run()
        self.folder.write_evaluation(when, summary)
        self.folder.append_samples([s for g in groups for s in g.samples], None, step, f"eval_{when}")
        return summary

    def _end(self, status: Status, error: str | None) -> None:
        if self._tracker is not None:
            self._tracker.close()
        self._write_end(status, error)

    def _write_end(self, status: Status, error: str | None) -> None:
        loop = self._loop
        progress = loop.progress if loop else None
        account = loop.ledger.as_dict() if loop else {"admitted": 0, "trained": 0, "dropped": {}, "in_flight": 0}
        account.pop("rounds", None)
        summary = RunSummary(
            stage="rl",
            status=status,
            steps=progress.step if progress else 0,
            skipped_steps=progress.skipped_steps if progress else 0,
            policy_version=progress.policy_version if progress else 0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(**account),
            tokens_generated=progress.tokens_generated if progress else 0,
            tokens_trained=progress.tokens_trained if progress else 0,
            active_rewards=self.config.rewards.active,
            eval=self._evaluation,
            error=error,
            measured={"watch": self._tracker.watch.counts} if self._tracker and self._tracker.watch else {},
            extra={"prompts": self.prompts.counts, "held_out": self.held_out.counts},
        )
        self.folder.write_summary(summary)
        report = write_report(self.folder.path)
        ConsoleSamples().show(first_pairs(self.folder.samples, CONSOLE_SAMPLES))
        ConsoleTable().show(summary.as_dict(), self.folder.path, report)


class _Late:
    """The tracker is built when training begins, after the slow start, so that its clock is right."""

    def __init__(self, stage: RlStage) -> None:
        self._stage = stage

    def log_step(self, metrics: dict[str, Any]) -> None:
        assert self._stage._tracker is not None
        self._stage._tracker.log_step(metrics)

    def log_samples(self, samples: Any, advantages: Any, step: int, split: str) -> None:
        assert self._stage._tracker is not None
        self._stage._tracker.log_samples(samples, advantages, step, split)


def _model_bytes(path: str) -> int:
    """Return the size of a model folder's weights, with a margin for another dtype on the wire."""
    return int(1.1 * sum(p.stat().st_size for p in Path(path).glob("*.safetensors")))
