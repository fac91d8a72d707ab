"""Groups from their admission until they are trained: being made, ready, or given up for another.

    prompts ──dispatch──▶ making (generate · parse · score) ──▶ buffer ──next_batch──▶ the loop
                 ▲                       │                         │
                 └── another in its place ┴──── drop[reason] ◀──────┘

One task makes one group. Admission follows the ledger's capacity, consumption the rule of `lwz_ray/staleness.py`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lwz_ray.config import Config
from lwz_ray.data import PromptOrder
from lwz_ray.errors import UserError, WaitTimeoutError
from lwz_ray.failures import BudgetExceededError, FailureLog, classify
from lwz_ray.grouping import GroupMaker, MadeGroup, group_seed
from lwz_ray.ledger import Ledger, LedgerError
from lwz_ray.progress import Progress
from lwz_ray.records import Prompt
from lwz_ray.staleness import choose_batch, out_of_reach, staleness_of
from lwz_ray.steering import failed_component, teaches_nothing

NO_SPREAD = (
    "all samples of prompt {prompt} have the same rewards; use prompts that are neither too easy nor too hard, raise "
    "group_size or sampling.temperature, or set algorithm.drop_no_spread=false"
)


class GroupsInFlight:
    """Makes groups as tasks and hands out batches of them."""

    def __init__(
        self,
        config: Config,
        prompts: Sequence[Prompt],
        maker: GroupMaker,
        failures: FailureLog,
        progress: Progress,
    ) -> None:
        """progress: the loop's; this counts the groups begun and the tokens generated in it."""
        self._config, self._prompts, self._maker, self._failures = config, prompts, maker, failures
        self._progress = progress
        self._order = PromptOrder(len(prompts), config.seed, config.data.shuffle)
        self.ledger = Ledger(config.groups_per_step, config.max_staleness)
        self.buffer: dict[int, MadeGroup] = {}
        self.served_version = 0
        """Every engine serves at least this policy version."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._again: list[int] = []
        self._changed = asyncio.Event()
        self._failure: Exception | None = None
        self._dropped_in_a_row = 0

    # -- making

    def dispatch(self) -> None:
        """Start as many groups as there is capacity for and the run still needs; those to be made again first."""
        while self._again:
            self._start(self._again.pop(0), self._progress.step)
        count = self._config.groups_per_step
        while self.ledger.capacity and self.ledger.kept < self._config.steps * count:
            group_id = self._progress.next_group
            self.ledger.admit(group_id, self.served_version)
            self._progress.next_group += 1
            self._start(group_id, (self.ledger.kept - 1) // count)

    def open_round(self, served_version: int) -> None:
        """Every engine serves this policy version: the next round's groups may be made."""
        self.served_version = served_version
        self.ledger.open_round()
        self.dispatch()
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Let `next_batch` raise this error, now if it is waiting."""
        self._failure = self._failure or error
        self._changed.set()

    def _start(self, group_id: int, round_index: int) -> None:
        self._tasks[group_id] = asyncio.create_task(self._make(group_id, round_index), name=f"group {group_id}")

    async def _make(self, group_id: int, round_index: int) -> None:
        try:
            prompt = self._prompts[self._order.index(group_id)]
            made = await self._made(prompt, group_id, round_index)
            if made is not None:
                self._keep_or_drop(prompt, made)
        except Exception as error:  # handed to the loop, which fails the run
            self.fail(error)
        finally:
            self._tasks.pop(group_id, None)
            self._changed.set()

    async def _made(self, prompt: Prompt, group_id: int, round_index: int) -> MadeGroup | None:
        """Return the group; None where the machines failed it, which is counted and costs the group alone."""
        seed = group_seed(self._config.seed, 0, group_id)
        try:
            return await self._maker.make(prompt, group_id, self._config.group_size, seed, round_index)
        except Exception as error:
            kind, message = classify(error), f"group {group_id}: {error}"
            self._failures.record("group_failed", message, kind)
            if kind != "infrastructure":
                raise
            self._drop(group_id, "failed_infrastructure", message)
            return None

    def _keep_or_drop(self, prompt: Prompt, made: MadeGroup) -> None:
        group, config = made.group, self._config
        self._progress.tokens_generated += group.num_completion_tokens
        failure = failed_component(group, config.rewards.active)
        if failure:
            self._drop(group.group_id, f"reward_failed_{failure.component}", failure.reason)
        elif config.algorithm.drop_no_spread and teaches_nothing(group, config):
            self._drop(group.group_id, "no_spread", NO_SPREAD.format(prompt=prompt.prompt_id))
        else:
            self.ledger.ready(group.group_id, group.policy_version_min)
            self.buffer[group.group_id] = made
            self._dropped_in_a_row = 0

    def _drop(self, group_id: int, reason: str, why: str) -> None:
        """Give a group up and admit another in its place, up to a cap of drops with none kept between them."""
        self.ledger.drop(group_id, reason)
        self._dropped_in_a_row += 1
        cap = self._config.failures.max_consecutive_dropped_groups
        if self._dropped_in_a_row >= cap:
            raise BudgetExceededError(f"{cap} groups in a row were dropped, the last as {reason}: {why}")
        self.dispatch()

    # -- consuming

    async def next_batch(self, stop: asyncio.Event) -> list[MadeGroup] | None:
        """Wait for `groups_per_step` groups that may be trained now; None when asked to stop."""
        config = self._config
        limit_s = config.actors.request_timeout_s + max(config.rewards.deadline_s.values()) + 60.0
        while not stop.is_set():
            self._failures.check()
            if self._failure:
                raise self._failure
            if batch := self._take():
                return batch
            if not self._tasks:
                raise LedgerError(f"no group is being made and no batch can be formed: {self.ledger.as_dict()}")
            self._changed.clear()
            await self._wait(stop, limit_s)
        return None

    async def _wait(self, stop: asyncio.Event, timeout_s: float) -> None:
        """Wait for a change of the groups, a stop or an exceeded budget."""
        events = (self._changed, stop, self._failures.event)
        waits = [asyncio.create_task(event.wait()) for event in events]
        try:
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if not done:
            raise WaitTimeoutError(f"any of the groups {sorted(self._tasks)} to be generated and scored", timeout_s)

    def _take(self) -> list[MadeGroup] | None:
        """Take a batch out of the buffer by `on_stale`, staleness measured; None while there is none."""
        config, version = self._config, self._progress.policy_version
        count, bound = config.groups_per_step, config.max_staleness
        if config.on_stale == "drop":
            self._drop_stale(version)
            chosen = sorted(self.buffer)[:count] if len(self.buffer) >= count else None
        else:
            chosen = choose_batch(self.ledger.starts, self.buffer.keys(), version, count, bound)
        if chosen is None:
            return None
        batch = [self.buffer.pop(i) for i in chosen]
        batch = [replace(made, staleness=staleness_of(made.group, version)) for made in batch]
        if max(made.staleness for made in batch) > bound:
            ages = {made.group.group_id: made.staleness for made in batch}
            raise LedgerError(f"the batch has groups of staleness {ages}, max_staleness={bound}")
        return batch

    def _drop_stale(self, policy_version: int) -> None:
        """Drop ready groups over the bound. No failure: weights have moved on meanwhile, so no cap holds them."""
        for group_id, made in list(self.buffer.items()):
            if staleness_of(made.group, policy_version) > self._config.max_staleness:
                del self.buffer[group_id]
                self.ledger.drop(group_id, "stale")
        self.dispatch()

    def trained(self, batch: Sequence[MadeGroup]) -> None:
        """The batch's optimizer steps are taken."""
        self.ledger.train(made.group.group_id for made in batch)
        self._dropped_in_a_row = 0

    # -- state

    def being_made(self) -> list[int]:
        """Return the groups in flight that a checkpoint cannot keep: they are made again."""
        return [i for i in self.ledger.open_groups if i not in self.buffer]

    def restore(self, account: dict[str, Any], making: Sequence[int], buffer: Sequence[MadeGroup]) -> None:
        """Go back to a checkpoint, whose weights every engine is given before anything is dispatched.

        Raises UserError where it was made with another `groups_per_step`.
        """
        step, version, count = self._progress.step, self._progress.policy_version, self._config.groups_per_step
        if account["trained"] != step * count:
            raise UserError(
                f"the checkpoint of step {step} trained {account['trained']} groups, but groups_per_step={count}: "
                f"resume with groups_per_step={account['trained'] // max(step, 1)}"
            )
        self.buffer = {made.group.group_id: made for made in buffer}
        self._again, self.served_version = sorted(making), version
        starts = {i: made.group.policy_version_min for i, made in self.buffer.items()}
        self.ledger.restore({**account, "rounds": step}, dict.fromkeys(making, version), starts)
        for group_id in out_of_reach(
            self.ledger.starts, self.buffer.keys(), version, count, self._config.max_staleness
        ):
            self.ledger.drop(group_id, "stale")
            if self.buffer.pop(group_id, None) is None:
                self._again.remove(group_id)
        self._failure, self._dropped_in_a_row = None, 0

    async def cancel(self) -> None:
        """Stop what is being made; the ledger stays as it is."""
        while self._tasks:  # one that ended just now may have begun another
            tasks = list(self._tasks.values())
            self._tasks.clear()  # one that has not run yet never comes to its own end, where it would leave
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
