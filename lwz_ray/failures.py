"""What went wrong in a run: classified, counted, and held against budgets."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, TypeVar, get_args

from lwz_ray.config_failures import FailuresConfig
from lwz_ray.errors import InfrastructureError, RewardFailure, UserError

FailureKind = Literal["infrastructure", "data", "bug"]

T = TypeVar("T")


class BudgetExceededError(InfrastructureError):
    """More went wrong than the run allows; says what, how often, and which key allows more."""


def classify(error: BaseException | RewardFailure) -> FailureKind:
    """Say whose failure it is: the machines', the data's or the user's, or ours."""
    if isinstance(error, RewardFailure):
        return error.blame
    if isinstance(error, UserError):
        return "data"
    if isinstance(error, InfrastructureError | OSError | TimeoutError | ConnectionError):
        return "infrastructure"
    return "bug"


def budgets_of(failures: FailuresConfig) -> dict[str, tuple[str, int]]:
    """Return source -> (config key, how many are allowed) of a `FailureLog`."""
    return {
        "rollout_lost": ("failures.max_rollout_losses", failures.max_rollout_losses),
        "reward_lost": ("failures.max_reward_losses", failures.max_reward_losses),
        "learner_restart": ("failures.max_learner_restarts", failures.max_learner_restarts),
    }


class FailureLog:
    """Counts failures by kind and source. `exceeded` is set once, by the first that is over its budget."""

    def __init__(
        self, budgets: Mapping[str, tuple[str, int]], warn: Callable[[str, str], None] = lambda source, message: None
    ) -> None:
        """budgets: source -> (config key, how many are allowed). warn(source, message) hears of every failure."""
        self._budgets = dict(budgets)
        self._warn = warn
        self._counts: dict[FailureKind, Counter[str]] = {kind: Counter() for kind in get_args(FailureKind)}
        self.exceeded: str | None = None
        self.event = asyncio.Event()
        """Set together with `exceeded`."""

    def record(self, source: str, message: str, kind: FailureKind = "infrastructure") -> None:
        """Count one failure of a source, such as `rollout_lost`; never raises."""
        self._counts[kind][source] += 1
        self._warn(source, message)
        if self.exceeded is None and source in self._budgets:
            key, allowed = self._budgets[source]
            seen = sum(counter[source] for counter in self._counts.values())
            if seen > allowed:
                self.exceeded = f"{source}: {seen} times, {key}={allowed} allows no more; the last: {message}"
                self.event.set()

    def check(self) -> None:
        """Raise BudgetExceededError once a budget is exceeded."""
        if self.exceeded is not None:
            raise BudgetExceededError(self.exceeded)

    async def guard(self, work: Awaitable[T]) -> T:
        """Return what the work returns; once a budget is exceeded, cancel it and raise BudgetExceededError."""
        task, exceeded = asyncio.ensure_future(work), asyncio.create_task(self.event.wait())
        try:
            await asyncio.wait({task, exceeded}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.check()
            return await task
        finally:
            task.cancel()
            exceeded.cancel()
            await asyncio.gather(task, exceeded, return_exceptions=True)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Failures by kind and source, for the summary."""
        return {kind: dict(counter) for kind, counter in self._counts.items()}
