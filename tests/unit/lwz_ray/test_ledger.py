"""The account of groups: capacity by staleness, every transition, and what is refused."""

import pytest

from lwz_ray.ledger import Ledger, LedgerError


@pytest.mark.parametrize(("max_staleness", "first", "third"), [(0, 4, 12), (1, 8, 16), (2, 12, 20)])
def test_capacity_is_a_formula(max_staleness: int, first: int, third: int) -> None:
    # (rounds + 1 + max_staleness) * 4 groups may have been admitted and kept.
    ledger = Ledger(groups_per_step=4, max_staleness=max_staleness)
    assert ledger.capacity == first
    ledger.open_round()
    ledger.open_round()
    assert ledger.capacity == third


def test_synchronous_training_admits_nothing_before_the_round_opens() -> None:
    ledger = Ledger(groups_per_step=2, max_staleness=0)
    for group_id in (0, 1):
        ledger.admit(group_id, 0)
        ledger.ready(group_id, 0)
    ledger.train([0, 1])
    assert (ledger.capacity, ledger.in_flight) == (0, 0)
    with pytest.raises(LedgerError, match="group 2 exceeds the capacity"):
        ledger.admit(2, 0)
    ledger.open_round()
    assert ledger.capacity == 2


def test_one_round_ahead_with_staleness_one() -> None:
    ledger = Ledger(groups_per_step=2, max_staleness=1)
    for group_id in range(4):
        ledger.admit(group_id, 0)
    assert ledger.capacity == 0
    for group_id in (0, 2):
        ledger.ready(group_id, 0)
    ledger.train([0, 2])
    assert (ledger.capacity, ledger.open_groups) == (0, [1, 3])
    ledger.open_round()
    assert ledger.capacity == 2
    assert ledger.as_dict() == {"rounds": 1, "admitted": 4, "trained": 2, "dropped": {}, "in_flight": 2}


def test_a_dropped_group_gives_its_place_away_and_stays_counted() -> None:
    ledger = Ledger(groups_per_step=1, max_staleness=0)
    ledger.admit(0, 0)
    ledger.drop(0, "reward_failed_length")
    ledger.admit(1, 0)
    ledger.ready(1, 0)
    ledger.drop(1, "stale")
    ledger.admit(2, 0)
    assert (ledger.admitted, ledger.kept, ledger.in_flight) == (3, 1, 1)
    assert ledger.dropped == {"reward_failed_length": 1, "stale": 1}
    ledger.check()


def making_and_ready() -> Ledger:
    """Return a ledger with group 0 being made, 1 ready, 2 trained, 3 dropped."""
    ledger = Ledger(groups_per_step=4, max_staleness=0)
    for group_id in range(4):
        ledger.admit(group_id, 0)
    for group_id in (1, 2):
        ledger.ready(group_id, 0)
    ledger.train([2])
    ledger.drop(3, "stale")
    return ledger


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda ledger: ledger.admit(0, 0), "group 0 is admitted already"),
        (lambda ledger: ledger.ready(1, 0), "group 1 is ready, expected making"),
        (lambda ledger: ledger.ready(9, 0), "group 9 is not in flight, expected making"),
        (lambda ledger: ledger.ready(0, -1), "group 0 was begun by an engine with policy version -1, but was admitted"),
        (lambda ledger: ledger.train([0]), "group 0 is making, expected ready"),
        (lambda ledger: ledger.train([2]), "group 2 is not in flight, expected ready"),
        (lambda ledger: ledger.train([1, 1]), "group 1 is not in flight, expected ready"),
        (lambda ledger: ledger.drop(2, "late"), "group 2 is not in flight, cannot drop it as late"),
        (lambda ledger: ledger.drop(3, "late"), "group 3 is not in flight, cannot drop it as late"),
    ],
)
def test_moves_that_do_not_exist_are_refused(move, message: str) -> None:
    ledger = making_and_ready()
    with pytest.raises(LedgerError, match=message):
        move(ledger)
    ledger.check()


def test_a_wrong_account_is_noticed() -> None:
    ledger = making_and_ready()
    ledger.trained += 1
    with pytest.raises(LedgerError, match="the account does not balance"):
        ledger.check()


def test_restore_continues_where_the_checkpoint_was() -> None:
    source = making_and_ready()
    ledger = Ledger(groups_per_step=4, max_staleness=0)
    ledger.restore(source.as_dict(), making={0: 0}, ready={1: 0})
    assert (ledger.as_dict(), ledger.capacity) == (source.as_dict(), 1)
    ledger.train([1])
    ledger.ready(0, 0)
    with pytest.raises(LedgerError, match="the account does not balance"):
        Ledger(4, 0).restore(source.as_dict(), making={}, ready={1: 0})
