"""The attempts of `stage=rl` within one job: evaluate, train, evaluate again, over rooms that run.

    load a checkpoint ─▶ mark what it supersedes ─▶ weights to every engine ─▶ evaluate ─▶ train ─▶ evaluate ─▶ probe

`Recovery` calls `attempt` again, with another checkpoint, when the learners were lost.
"""

from pathlib import Path
from typing import Any

from launch.checkpoints import CheckpointStore
from launch.evaluator import Evaluator
from launch.memory_watch import MemoryWatch, combined
from launch.probe import probe, probe_warning
from launch.rooms import Rooms
from launch.run_folder import RunFolder
from launch.scorers import Scorers
from launch.stages.lifecycle import Lifecycle
from launch.trackers import MultiTracker, build_trackers
from lwz_ray.config import Config
from lwz_ray.data import PromptSet
from lwz_ray.encoding import PromptEncoder
from lwz_ray.evaluation import EvalSummary, compare
from lwz_ray.failures import FailureLog
from lwz_ray.grouping import GroupMaker
from lwz_ray.loop import Parts, TrainingLoop


class RlRun:
    """What the attempts of one job share, and what they leave for the summary."""

    def __init__(
        self,
        config: Config,
        life: Lifecycle,
        folder: RunFolder,
        store: CheckpointStore,
        failures: FailureLog,
        rooms: Rooms,
        scorers: Scorers,
        encoder: PromptEncoder,
        prompts: PromptSet,
        held_out: PromptSet,
    ) -> None:
        """rooms: started; scorers: theirs."""
        self.config, self._life, self._folder, self._store = config, life, folder, store
        self._failures, self._rooms, self._prompts = failures, rooms, prompts.prompts
        self._maker = GroupMaker(rooms.rollouts, scorers.rewards, encoder, config.template)
        self._evaluator = Evaluator(config, self._maker, held_out.prompts, failures)
        self._probe_prompt = encoder.encode(held_out.prompts[0]).tolist()
        self._metrics = combined(scorers.metrics, rooms.rollouts.metrics, MemoryWatch().metrics)
        self._begun = False
        """An attempt of this job was begun: the engines may have any weights."""
        self._reached = 0
        """The last step that was taken, also of an attempt that was lost."""
        self.loop: TrainingLoop | None = None
        """Of the present attempt."""
        self.tracker: MultiTracker | None = None
        self.evaluation: dict[str, Any] | None = None
        self.probed: dict[str, Any] | None = None

    async def attempt(self, newest: Path | None) -> None:
        """Go on from a checkpoint, or from the beginning, to the end of the stage or until a stop is asked for."""
        again, self._begun = self._begun, True
        loop = await self._restored(newest)
        step, version = loop.progress.step, loop.progress.policy_version
        if self._folder.attempt > 1:
            # An evaluation before training that this job made stands: no other weights than the first ones were asked.
            resumed_from = 0 if again and newest is None else step if newest is not None else None
            self._folder.mark_superseded(resumed_from, self._reached)
        self.loop, self._reached = loop, step
        if again or newest is not None:
            await self._rooms.weights.stage(version)
            await self._rooms.weights.load(version)
        if again:
            await self._probe()
        try:
            before = await self._evaluation_before(newest)
            if await self._trained(loop):
                await self._end(before)
        finally:
            self._reached = max(self._reached, loop.progress.step)

    async def _restored(self, newest: Path | None) -> TrainingLoop:
        """Return a loop over the present learners that stands where the checkpoint does; the engines do not yet."""
        rooms = self._rooms
        self._store.attach(rooms.learner, rooms.critic)
        parts = Parts(
            self._maker, rooms.learner, rooms.weights, _Late(self), self._store, self._evaluator.numbers,
            self._metrics, rooms.critic, self._failures,
        )  # fmt: skip
        loop = TrainingLoop(self.config, self._prompts, parts)
        if newest is not None:
            state, buffer = await self._store.load(newest)
            loop.restore(state, buffer)
        return loop

    async def _evaluation_before(self, newest: Path | None) -> EvalSummary:
        """Return the evaluation before the first step: this job's, an earlier one's, or a new one."""
        before = self._evaluator.before
        if before is None and newest is not None:
            before = self._folder.read_evaluation("before")
        if before is None:
            self._life.say(f"evaluating {self.config.eval.num_prompts} held-out prompts before training")
            before = await self._evaluate("before")
        self._evaluator.before = before
        return before

    async def _trained(self, loop: TrainingLoop) -> bool:
        """Run the loop; say whether it came to its end, not to a stop."""
        if self.tracker is None:
            # Built when training begins, after the slow start, so that its clock is right.
            self.tracker = build_trackers(self.config, self._folder, loop.progress.step)
        self._life.graceful = True
        try:
            await loop.run(self._life.stop)
        finally:
            self._life.graceful = False
        return not self._life.stop.is_set()

    async def _end(self, before: EvalSummary) -> None:
        self._life.say("evaluating the same prompts after training")
        after = await self._evaluate("after")
        evaluation = compare(before, after, self.config.eval.bootstrap_resamples, self.config.seed)
        evaluation |= self._evaluator.drift(after)
        await self._probe()
        await self._folder.replace_export(self._rooms.learner.export)
        self.evaluation = evaluation
        self._life.finished = True

    async def _evaluate(self, when: str) -> EvalSummary:
        assert self.loop is not None
        summary, groups = await self._evaluator.run()
        self._folder.write_evaluation(when, summary)
        self._folder.append_samples(
            [s for g in groups for s in g.samples], None, self.loop.progress.step, f"eval_{when}"
        )
        return summary

    async def _probe(self) -> None:
        """Ask every engine whether it serves the learner's weights; the last answer goes to the summary."""
        tolerance, timeout_s = self.config.algorithm.mismatch_warning, self.config.actors.request_timeout_s
        found = await probe(self._rooms.engine_calls(), self._rooms.learner, self._probe_prompt, tolerance, timeout_s)
        self.probed = found
        if (warning := probe_warning(found)) is not None:
            self._folder.warn("probe", warning)


class _Late:
    """The tracker as the loop knows it: the loop is made first."""

    def __init__(self, run: RlRun) -> None:
        self._run = run

    def log_step(self, metrics: dict[str, Any]) -> None:
        assert self._run.tracker is not None
        self._run.tracker.log_step(metrics)

    def log_samples(self, samples: Any, advantages: Any, step: int, split: str) -> None:
        assert self._run.tracker is not None
        self._run.tracker.log_samples(samples, advantages, step, split)
