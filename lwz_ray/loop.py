"""The training loop. Synchronous training is `max_staleness = 0`, not a second loop.

    prompts ──admit──▶ making (generate · parse · score) ──▶ buffer ──▶ batch ──▶ update ──▶ publish
               ▲                    one task a group                     annotate · credit · train │
               └──────────── capacity: rounds + 1 + max_staleness, per ledger ◀───── open_round ───┘

One task makes a group; this loop alone consumes them, trains (`policy_update`) and publishes. New weights reach the
rollout actors while groups are being made; what was sampled with which version is written on every completion, and its
staleness is measured when it is consumed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lwz_ray.config import Config
from lwz_ray.data import PromptOrder
from lwz_ray.errors import InfrastructureError, WaitTimeoutError
from lwz_ray.grouping import GroupMaker, MadeGroup, group_seed
from lwz_ray.ledger import Ledger
from lwz_ray.policy_update import PolicyUpdate
from lwz_ray.protocols import Learner, Tracker, WeightSync
from lwz_ray.records import Prompt, StepResult
from lwz_ray.steering import failed_component, teaches_nothing
from lwz_ray.step_metrics import group_metrics
from lwz_ray.watch import watch_metrics

NO_SPREAD = (
    "all samples of prompt {prompt} have the same rewards; use prompts that are neither too easy nor too hard, raise "
    "group_size or sampling.temperature, or set algorithm.drop_no_spread=false"
)


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


@dataclass(slots=True)
class Progress:
    """Where the run stands; counted apart: steps, policy versions, optimizer steps, skipped ones."""

    step: int = 0
    policy_version: int = 0
    optimizer_steps: int = 0
    skipped_steps: int = 0
    tokens_generated: int = 0
    tokens_trained: int = 0
    next_group: int = 0
    """Groups are numbered by their position in the prompt order, so this is the data position too."""


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


class TrainingLoop:
    """One run of the loop; `run` returns when the steps are done or `stop` is set."""

    def __init__(self, config: Config, prompts: Sequence[Prompt], parts: Parts) -> None:
        self.config = config
        self.parts = parts
        self.progress = Progress()
        self.ledger = Ledger(config.groups_per_step, config.max_staleness)
        self._prompts = prompts
        self._order = PromptOrder(len(prompts), config.seed, config.data.shuffle)
        self._buffer: dict[int, MadeGroup] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._again: list[int] = []
        self._arrived = asyncio.Event()
        self._failure: Exception | None = None
        self._dropped_in_a_row = 0
        self._update = PolicyUpdate(config, parts.learner, parts.critic)
        self._saved_step: int | None = None
        self._measured: dict[str, Any] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Train until `steps` are done; leaves a checkpoint of the last step, also when stopped."""
        try:
            self._dispatch()
            while self.progress.step < self.config.steps:
                waited = time.monotonic()
                batch = await self._next_batch(stop)
                if batch is None:
                    break
                await self._step(batch, time.monotonic() - waited)
            await self._save()
            await self.parts.checkpoints.wait()
        finally:
            await self._cancel_tasks()

    # -- making groups

    def _dispatch(self) -> None:
        """Start as many groups as the ledger has capacity for and the run still needs; those to be made again first."""
        while self._again:
            self._start(self._again.pop(0))
        needed = self.config.steps * self.config.groups_per_step
        while self.ledger.capacity and self.ledger.kept < needed:
            group_id = self.progress.next_group
            self.ledger.admit(group_id)
            self.progress.next_group += 1
            self._start(group_id)

    def _start(self, group_id: int) -> None:
        self._tasks[group_id] = asyncio.create_task(self._make(group_id), name=f"group {group_id}")

    async def _make(self, group_id: int) -> None:
        try:
            prompt = self._prompts[self._order.index(group_id)]
            seed = group_seed(self.config.seed, 0, group_id)
            made = await self.parts.maker.make(prompt, group_id, self.config.group_size, seed)
            self.progress.tokens_generated += made.group.num_completion_tokens
            failure = failed_component(made.group, self.config.rewards.active)
            if failure:
                self._drop(group_id, f"reward_failed_{failure.component}", failure.reason)
            elif self.config.algorithm.drop_no_spread and teaches_nothing(made.group, self.config):
                self._drop(group_id, "no_spread", NO_SPREAD.format(prompt=prompt.prompt_id))
            else:
                self.ledger.ready(group_id)
                self._buffer[group_id] = made
                self._dropped_in_a_row = 0
        except Exception as error:  # handed to the loop, which fails the run
            self._failure = self._failure or error
        finally:
            self._tasks.pop(group_id, None)
            self._arrived.set()

    def _drop(self, group_id: int, reason: str, why: str) -> None:
        """Give a group up and admit another in its place, up to a cap of drops with none kept between them."""
        self.ledger.drop(group_id, reason)
        self._dropped_in_a_row += 1
        cap = self.config.failures.max_consecutive_dropped_groups
        if self._dropped_in_a_row >= cap:
            raise InfrastructureError(f"{cap} groups in a row were dropped, the last as {reason}: {why}")
        self._dispatch()

    # -- consuming groups

    async def _next_batch(self, stop: asyncio.Event) -> list[MadeGroup] | None:
        """Wait for `groups_per_step` usable groups, lowest numbers first; None when asked to stop."""
        limit = self.config.actors.request_timeout_s + max(self.config.rewards.deadline_s.values()) + 60.0
        while True:
            if stop.is_set():
                return None
            self._drop_stale()
            if self._failure:
                raise self._failure
            if len(self._buffer) >= self.config.groups_per_step:
                chosen = sorted(self._buffer)[: self.config.groups_per_step]
                return [self._buffer.pop(i) for i in chosen]
            self._arrived.clear()
            await self._wait_for_arrival(stop, limit)

    async def _wait_for_arrival(self, stop: asyncio.Event, timeout_s: float) -> None:
        waits = [asyncio.create_task(self._arrived.wait()), asyncio.create_task(stop.wait())]
        try:
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if not done:
            raise WaitTimeoutError(f"any of the groups {sorted(self._tasks)} to be generated and scored", timeout_s)

    def _drop_stale(self) -> None:
        """Measure staleness at consumption; drop what is over the bound, or keep it with `on_stale=train`."""
        for group_id in sorted(self._buffer):
            made = self._buffer[group_id]
            staleness = self.progress.policy_version - made.group.policy_version_min
            self._buffer[group_id] = replace(made, staleness=staleness)
            if staleness > self.config.max_staleness and self.config.on_stale == "drop":
                del self._buffer[group_id]
                self._drop(group_id, "stale", f"{staleness} versions behind, max_staleness={self.config.max_staleness}")

    async def _step(self, batch: list[MadeGroup], wait_s: float) -> None:
        """Train on one batch, publish the new weights, and report."""
        started = time.monotonic() - wait_s
        groups = [m.group for m in batch]
        weights: dict[str, float] = {**self.config.rewards.weights}
        update = await self._update.take(groups, self.progress.step, self.progress.policy_version)
        result = update.result
        self.ledger.train(g.group_id for g in groups)
        self._dropped_in_a_row = 0
        self._count(result)
        published: dict[str, float] = {}
        if result.optimizer_steps:
            self.progress.policy_version += 1
            published = await self.parts.weights.publish(self.progress.policy_version)
        self.progress.step += 1
        await self._update.refresh_reference(self.progress.step)
        self.ledger.open_round()
        self._dispatch()
        metrics = group_metrics(batch, weights, self.config.sampling.max_tokens) | watch_metrics(groups, weights)
        metrics |= dict(result.metrics) | published | self._account() | self.parts.scoring()
        step_s = time.monotonic() - started
        metrics |= {"time/step_s": step_s, "time/wait_s": wait_s}
        metrics["rollout/tokens_per_s"] = metrics["rollout/tokens"] / step_s
        samples = [s for g in groups for s in g.samples]
        self.parts.tracker.log_samples(samples, update.advantages, self.progress.step, "train")
        await self._after_step(metrics)

    async def _after_step(self, metrics: dict[str, float]) -> None:
        """Evaluate, log and save where the step asks for it."""
        step, config = self.progress.step, self.config
        if config.eval.every_steps and step % config.eval.every_steps == 0 and step < config.steps:
            evaluated = await self.parts.evaluate(step)
            metrics |= {f"eval/{k}": v for k, v in evaluated.items()}
        self.parts.tracker.log_step({"step": step, "policy_version": self.progress.policy_version, **metrics})
        self._measured = metrics
        if step % config.run.checkpoint_every_steps == 0:
            await self._save()

    def _count(self, result: StepResult) -> None:
        """Count optimizer steps and what they saw."""
        self.progress.optimizer_steps += result.optimizer_steps
        self.progress.skipped_steps += result.skipped
        self.progress.tokens_trained += result.num_trained_tokens

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
        """Checkpoint the present step once."""
        if self._saved_step == self.progress.step:
            return
        buffer = list(self._buffer.values())
        await self.parts.checkpoints.save(self.progress.step, self.state(), buffer, self._measured)
        self._saved_step = self.progress.step

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs beside the buffer."""
        making = [i for i in self.ledger.open_groups if i not in self._buffer]
        progress = {f: getattr(self.progress, f) for f in Progress.__dataclass_fields__}
        return {"progress": progress, "ledger": self.ledger.as_dict(), "making": making}

    def restore(self, state: dict[str, Any], buffer: Sequence[MadeGroup]) -> None:
        """Go back to a checkpoint; groups that were being made then are made again under their numbers."""
        self.progress = Progress(**state["progress"])
        self._buffer = {m.group.group_id: m for m in buffer}
        self._again = sorted(state["making"])
        self.ledger.restore(state["ledger"], state["making"], self._buffer)
        self._saved_step = self.progress.step

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
