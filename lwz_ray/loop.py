"""The training loop. Synchronous training is `max_staleness = 0`, not a second loop.

    prompts ──admit──▶ making (generate · parse · score) ──▶ buffer ──▶ batch ──▶ update ──▶ stage ──┐
               ▲                    one task a group                     annotate · credit · train   │
               └── capacity: rounds + 1 + max_staleness, per ledger ◀── open_round ◀── load ◀────────┘
                                                                              beside the next batch

Tasks make groups (`group_making`); this loop alone consumes them, trains (`policy_update`) and stages the new weights,
which the engines load while the next batch is collected and trained (`weight_updates`). What was sampled with which
version is written on every completion, and its staleness is measured when it is consumed (`staleness`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lwz_ray.config import Config
from lwz_ray.failures import BudgetExceededError, FailureLog
from lwz_ray.group_making import GroupsInFlight
from lwz_ray.grouping import GroupMaker, MadeGroup
from lwz_ray.ledger import Ledger
from lwz_ray.policy_update import PolicyUpdate, Update
from lwz_ray.progress import Progress
from lwz_ray.protocols import Learner, Tracker, WeightSync
from lwz_ray.records import Prompt
from lwz_ray.staleness import overlaps_load
from lwz_ray.step_metrics import group_metrics
from lwz_ray.watch import watch_metrics
from lwz_ray.weight_updates import WeightUpdates


class Checkpoints(Protocol):
    """Keeps the run's state."""

    async def save(
        self, step: int, state: dict[str, Any], buffer: Sequence[MadeGroup], metrics: Mapping[str, Any]
    ) -> None:
        """Take the state; it may be written while training goes on. metrics: what the step measured."""
        ...

    async def wait(self) -> None:
        """Return when the last `save` is complete; raise what went wrong with it."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop drives; Ray handles or in-process parts."""

    maker: GroupMaker
    learner: Learner
    weights: WeightSync
    tracker: Tracker
    checkpoints: Checkpoints
    evaluate: Callable[[int], Awaitable[dict[str, float]]]
    """Evaluate the present weights; called with the step."""
    scoring: Callable[[], dict[str, float]] = dict
    """Return what the scoring side counts of itself: `pool/*`, `judge/*`."""
    critic: Learner | None = None
    """The value network; there where `algorithm.uses_critic`."""
    failures: FailureLog = field(default_factory=lambda: FailureLog({}))
    """What went wrong so far, anywhere in the run; the loop ends once a budget is exceeded."""


class TrainingLoop:
    """One run of the loop; `run` returns when the steps are done or `stop` is set."""

    def __init__(self, config: Config, prompts: Sequence[Prompt], parts: Parts) -> None:
        self.config = config
        self.parts = parts
        self.progress = Progress()
        self._groups = GroupsInFlight(config, prompts, parts.maker, parts.failures, self.progress)
        self._update = PolicyUpdate(config, parts.learner, parts.critic)
        self._weights = WeightUpdates(parts.weights, self._groups.open_round, self.fail)
        self._saved_step: int | None = None
        self._measured: dict[str, Any] = {}

    @property
    def ledger(self) -> Ledger:
        return self._groups.ledger

    def fail(self, error: Exception) -> None:
        """Let `run` raise this error: at once while it waits for groups, else after the step that is under way."""
        self._groups.fail(error)

    async def run(self, stop: asyncio.Event) -> None:
        """Train until `steps` are done; leaves a checkpoint of the last step, also when stopped.

        Every engine serves `progress.policy_version` when this begins. Raises BudgetExceededError after a checkpoint;
        any other error at once, the ledger as it is. No task of the loop is left, whatever happens.
        """
        try:
            self._groups.dispatch()
            while self.progress.step < self.config.steps:
                waited = time.monotonic()
                batch = await self._groups.next_batch(stop)
                if batch is None:
                    break
                await self._step(batch, time.monotonic() - waited)
            await self._weights.settled()
            await self._save_and_wait()
        except BudgetExceededError as reason:
            await self._save_beside(reason)
            raise
        finally:
            await self._weights.cancel()  # before the groups: a load that ends would begin new ones
            await self._groups.cancel()

    async def _step(self, batch: list[MadeGroup], wait_s: float) -> None:
        """Train on one batch, send the new weights on their way, and report."""
        started = time.monotonic() - wait_s
        progress = self.progress
        update = await self._update.take([m.group for m in batch], progress.step, progress.policy_version)
        await self._weights.settled()
        self._groups.trained(batch)
        progress.step += 1
        progress.optimizer_steps += update.result.optimizer_steps
        progress.skipped_steps += update.result.skipped
        progress.tokens_trained += update.result.num_trained_tokens
        if update.result.optimizer_steps:
            progress.policy_version += 1
            await self._weights.begin(progress.policy_version)
        else:
            self._groups.open_round(progress.policy_version)
        await self._update.refresh_reference(progress.step)
        if not overlaps_load(self.config.max_staleness) or self._evaluates() or progress.step == self.config.steps:
            await self._weights.settled()
        await self._report(batch, update, started, wait_s)
        self._update.check()
        if progress.step % self.config.run.checkpoint_every_steps == 0:
            await self._save()

    def _evaluates(self) -> bool:
        """Tell whether this step is followed by an evaluation; the last one's is the stage's."""
        step, every = self.progress.step, self.config.eval.every_steps
        return bool(every) and step % every == 0 and step < self.config.steps

    async def _report(self, batch: list[MadeGroup], update: Update, started: float, wait_s: float) -> None:
        """Log what the step did; evaluate first where it asks for it."""
        groups = [m.group for m in batch]
        rewards: dict[str, float] = {**self.config.rewards.weights}
        metrics = group_metrics(batch, rewards, self.config.sampling.max_tokens) | watch_metrics(groups, rewards)
        metrics |= dict(update.result.metrics) | self._account() | self.parts.scoring()
        step_s = time.monotonic() - started
        metrics |= self._weights.metrics(step_s) | {"time/step_s": step_s, "time/wait_s": wait_s}
        metrics["rollout/tokens_per_s"] = metrics["rollout/tokens"] / step_s
        step = self.progress.step
        self.parts.tracker.log_samples([s for g in groups for s in g.samples], update.advantages, step, "train")
        if self._evaluates():
            metrics |= {f"eval/{k}": v for k, v in (await self.parts.evaluate(step)).items()}
        self.parts.tracker.log_step({"step": step, "policy_version": self.progress.policy_version, **metrics})
        self._measured = metrics

    def _account(self) -> dict[str, float]:
        self.ledger.check()
        return {
            "groups/admitted": float(self.ledger.admitted),
            "groups/trained": float(self.ledger.trained),
            "groups/dropped": float(sum(self.ledger.dropped.values())),
            "groups/in_flight": float(self.ledger.in_flight),
        }

    # -- state

    async def _save(self) -> None:
        """Checkpoint the present step once. A load may be under way: whoever goes back to this loads again."""
        if self._saved_step == self.progress.step:
            return
        buffer = list(self._groups.buffer.values())
        await self.parts.checkpoints.save(self.progress.step, self.state(), buffer, self._measured)
        self._saved_step = self.progress.step

    async def _save_and_wait(self) -> None:
        await self._save()
        await self.parts.checkpoints.wait()

    async def _save_beside(self, reason: BudgetExceededError) -> None:
        """Leave a checkpoint before the run ends for a reason; where that fails, say so beside the reason."""
        try:
            await self._save_and_wait()
        except Exception as error:
            raise BudgetExceededError(f"{reason}; no checkpoint of step {self.progress.step}: {error}") from error

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs beside the buffer."""
        making = self._groups.being_made()
        return {"progress": self.progress.as_dict(), "ledger": self.ledger.as_dict(), "making": making}

    def restore(self, state: dict[str, Any], buffer: Sequence[MadeGroup]) -> None:
        """Go back to a checkpoint; groups that were being made then are made again under their numbers.

        Before `run` is called again, stage and load `progress.policy_version`.
        """
        self.progress.restore(state["progress"])
        self._groups.restore(state["ledger"], state["making"], buffer)
        self._update = PolicyUpdate(self.config, self.parts.learner, self.parts.critic)
        self._saved_step = self.progress.step
