"""Strict accounting of groups: admitted = trained + dropped (by reason) + in flight, at any time.

    admit ──▶ in flight ──▶ ready ──▶ trained
                  └────────────┴────▶ dropped[reason]

Capacity bounds staleness before work starts; `lwz_ray/staleness.py` has the formula. So that a batch can be chosen by
it, the ledger keeps the policy version that each group in flight started at.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lwz_ray.staleness import capacity


class LedgerError(RuntimeError):
    """A transition that the state machine does not have: a bug, never a user's mistake."""


class Ledger:
    """The one state machine of back-pressure. `max_staleness = 0` admits a round's groups only when it opens."""

    def __init__(self, groups_per_step: int, max_staleness: int) -> None:
        self._groups_per_step = groups_per_step
        self._max_staleness = max_staleness
        self.rounds = 0
        """Training steps whose weights every engine serves."""
        self.admitted = 0
        self.trained = 0
        self.dropped: Counter[str] = Counter()
        self._open: dict[int, str] = {}
        self._starts: dict[int, int] = {}

    @property
    def in_flight(self) -> int:
        """Groups admitted and neither trained nor dropped: being made, or ready."""
        return len(self._open)

    @property
    def kept(self) -> int:
        """Groups admitted and not dropped."""
        return self.admitted - sum(self.dropped.values())

    @property
    def capacity(self) -> int:
        """How many groups may be admitted now."""
        return capacity(self.rounds, self.kept, self._groups_per_step, self._max_staleness)

    @property
    def open_groups(self) -> list[int]:
        """Ids of the groups in flight, in order."""
        return sorted(self._open)

    @property
    def starts(self) -> Mapping[int, int]:
        """Group in flight -> policy version it started at; being made: at least this one."""
        return self._starts

    def admit(self, group_id: int, start: int) -> None:
        """start: the policy version that every engine serves at least."""
        if group_id in self._open:
            raise LedgerError(f"group {group_id} is admitted already")
        if self.capacity == 0:
            raise LedgerError(f"group {group_id} exceeds the capacity: {self.as_dict()}")
        self._open[group_id], self._starts[group_id] = "making", start
        self.admitted += 1

    def ready(self, group_id: int, start: int) -> None:
        """The group is generated and scored. start: the version that wrote its oldest token."""
        self._expect(group_id, "making")
        if start < self._starts[group_id]:
            raise LedgerError(
                f"group {group_id} was begun by an engine with policy version {start}, but was admitted when every "
                f"engine served version {self._starts[group_id]}"
            )
        self._open[group_id], self._starts[group_id] = "ready", start

    def train(self, group_ids: Iterable[int]) -> None:
        """The groups' optimizer steps are taken."""
        for group_id in group_ids:
            self._expect(group_id, "ready")
            del self._open[group_id], self._starts[group_id]
            self.trained += 1

    def drop(self, group_id: int, reason: str) -> None:
        """Give a group up; its place may be taken by another."""
        if group_id not in self._open:
            raise LedgerError(f"group {group_id} is not in flight, cannot drop it as {reason}")
        del self._open[group_id], self._starts[group_id]
        self.dropped[reason] += 1

    def open_round(self) -> None:
        """Every engine serves a step's weights: the next round's groups may be admitted."""
        self.rounds += 1

    def check(self) -> None:
        """Raise LedgerError unless the account balances."""
        if self.admitted != self.trained + sum(self.dropped.values()) + self.in_flight:
            raise LedgerError(f"the account does not balance: {self.as_dict()}")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for summaries and checkpoints."""
        return {
            "rounds": self.rounds,
            "admitted": self.admitted,
            "trained": self.trained,
            "dropped": dict(self.dropped),
            "in_flight": self.in_flight,
        }

    def restore(self, state: dict[str, Any], making: Mapping[int, int], ready: Mapping[int, int]) -> None:
        """Go back to a checkpoint. making, ready: group -> start; the former are made again, the latter are there."""
        self.rounds, self.admitted, self.trained = state["rounds"], state["admitted"], state["trained"]
        self.dropped = Counter(state["dropped"])
        self._open = {**dict.fromkeys(making, "making"), **dict.fromkeys(ready, "ready")}
        self._starts = {**making, **ready}
        self.check()

    def _expect(self, group_id: int, state: str) -> None:
        if self._open.get(group_id) != state:
            raise LedgerError(f"group {group_id} is {self._open.get(group_id, 'not in flight')}, expected {state}")
