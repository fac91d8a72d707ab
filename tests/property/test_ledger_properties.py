"""The account of groups under any order of moves, against a plain list of what happened."""

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lwz_ray.ledger import Ledger


class Account(RuleBasedStateMachine):
    """Admits, finishes, trains, drops, opens rounds and goes back to checkpoints, as the loop may."""

    @initialize(groups_per_step=st.integers(1, 4), max_staleness=st.integers(0, 3))
    def start(self, groups_per_step: int, max_staleness: int) -> None:
        self.shape = (groups_per_step, max_staleness)
        self.ledger = Ledger(*self.shape)
        self.history: list[tuple[str, int]] = []
        self.state: dict[int, str] = {}
        self.saved: tuple[str, list[tuple[str, int]], dict[int, str]] | None = None
        self.next_group = 0

    def groups(self, state: str) -> list[int]:
        return [g for g, s in self.state.items() if s == state]

    def move(self, group_id: int, state: str) -> None:
        self.state[group_id] = state
        self.history.append((state, group_id))

    @precondition(lambda self: self.ledger.capacity > 0)
    @rule()
    def admit(self) -> None:
        self.ledger.admit(self.next_group, self.ledger.rounds)
        self.move(self.next_group, "making")
        self.next_group += 1

    @precondition(lambda self: self.groups("making"))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        group_id = data.draw(st.sampled_from(self.groups("making")))
        self.ledger.ready(group_id, data.draw(st.integers(self.ledger.starts[group_id], self.ledger.rounds)))
        self.move(group_id, "ready")

    @precondition(lambda self: self.groups("making") + self.groups("ready"))
    @rule(data=st.data(), reason=st.sampled_from(["stale", "reward_failed_length"]))
    def drop(self, data: st.DataObject, reason: str) -> None:
        group_id = data.draw(st.sampled_from(self.groups("making") + self.groups("ready")))
        self.ledger.drop(group_id, reason)
        self.move(group_id, "dropped")

    @precondition(lambda self: len(self.groups("ready")) >= self.shape[0])
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        count = self.shape[0]
        batch = data.draw(st.lists(st.sampled_from(self.groups("ready")), min_size=count, max_size=count, unique=True))
        self.ledger.train(batch)
        for group_id in batch:
            self.move(group_id, "trained")
        self.ledger.open_round()

    @rule()
    def save(self) -> None:
        self.saved = (json.dumps(self.ledger.as_dict()), list(self.history), dict(self.state))

    @precondition(lambda self: self.saved is not None)
    @rule()
    def go_back(self) -> None:
        """A new attempt: what happened after the checkpoint is no part of the history that survives."""
        assert self.saved is not None
        account, self.history, self.state = self.saved[0], list(self.saved[1]), dict(self.saved[2])
        self.ledger = Ledger(*self.shape)
        making, ready = (dict.fromkeys(self.groups(s), 0) for s in ("making", "ready"))
        self.ledger.restore(json.loads(account), making, ready)
        assert json.dumps(self.ledger.as_dict()) == account
        self.next_group = len(self.state)

    @invariant()
    def the_account_balances(self) -> None:
        self.ledger.check()
        counts = [len(self.groups(s)) for s in ("trained", "dropped")]
        assert [self.ledger.trained, sum(self.ledger.dropped.values())] == counts
        assert self.ledger.admitted == len(self.state) == sum(counts) + self.ledger.in_flight
        assert self.ledger.open_groups == sorted(self.groups("making") + self.groups("ready"))
        assert self.ledger.open_groups == sorted(self.ledger.starts)

    @invariant()
    def capacity_is_never_exceeded(self) -> None:
        count, max_staleness = self.shape
        limit = (self.ledger.rounds + 1 + max_staleness) * count
        assert self.ledger.kept + self.ledger.capacity == limit
        assert self.ledger.in_flight <= (max_staleness + 1) * count

    @invariant()
    def no_group_is_trained_twice(self) -> None:
        trained = [g for state, g in self.history if state == "trained"]
        assert len(trained) == len(set(trained)) == self.ledger.rounds * self.shape[0]


TestAccount = Account.TestCase
TestAccount.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
