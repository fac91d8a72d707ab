"""Learners that are lost, late or started anew, amid engines that load and join."""

import asyncio
from pathlib import Path

import pytest

from launch import weight_sync
from lwz_ray.errors import LearnerLostError, WaitTimeoutError
from tests.weight_parts import Case, InProcess, TableRank, logits_of, served, weight_case


@pytest.fixture
def case(tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    """request.param: transport, timeout_s."""
    return weight_case(tmp_path, *getattr(request, "param", ()))


@pytest.mark.parametrize("case", [("auto", 0.05)], indirect=True)
async def test_who_joins_after_a_learner_restart_waits_for_its_first_weights(case: Case, tmp_path: Path) -> None:
    _, old = await case.joined("old")
    await case.publish(5)
    again = TableRank(tmp_path / "learner", logits_of(4))
    case.sync.attach_learners([InProcess(again)], "two")
    late, handle = await case.started("late")
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.05 s for the learner to stage weights for late, which"):
        await case.sync.join("late", handle, "one")
    joining = asyncio.create_task(case.sync.join("late", handle, "one"))
    await asyncio.sleep(0)
    await case.publish(5)  # the same number with other weights: everyone must have them
    assert await joining == 5
    assert served(late) == served(old) == (5, 4)


@pytest.mark.parametrize("node", ["one", "two"])
async def test_a_lost_learner_is_not_blamed_on_engines(case: Case, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sync, "LOOK_TIMEOUT_S", 0.05)
    await case.joined("a", node)
    await case.sync.stage(1)
    case.rank.alive = False
    case.rank.publication.close()  # its files are gone with it
    with pytest.raises(LearnerLostError, match="learner rank 0 was lost while engines loaded policy version 1"):
        await case.sync.load(1)
    assert case.failed == []
    late, handle = await case.started("late")
    joining = asyncio.create_task(case.sync.join("late", handle, node))
    await asyncio.sleep(0.1)
    assert not joining.done()
    (case.folder / "again").mkdir()
    case.sync.attach_learners([InProcess(TableRank(case.folder / "again", logits_of(6)))], "one")
    await case.publish(0)
    assert await joining == 0 and served(late) == (0, 6)


@pytest.mark.parametrize("case", [("auto", 0.05)], indirect=True)
async def test_learners_that_are_late_to_stage_are_lost(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.rank, "stage_weights", case.rank.hang, raising=True)
    with pytest.raises(LearnerLostError, match=r"waited 0\.05 s for the learner to stage policy version 1 and gave up"):
        await case.sync.stage(1)


async def test_a_learner_restart_amid_a_join_is_not_blamed_on_the_engine(case: Case) -> None:
    await case.publish(5)
    late, handle = await case.started("late")
    late.may_load.clear()
    joining = asyncio.create_task(case.sync.join("late", handle, "one"))
    await late.asked.wait()
    case.rank.publication.close()  # as the learners that are started next do
    (case.folder / "again").mkdir()
    case.sync.attach_learners([InProcess(TableRank(case.folder / "again", logits_of(4)))], "one")
    publishing = asyncio.create_task(case.publish(3))
    late.may_load.set()
    assert await joining == 3
    await publishing
    assert served(late) == (3, 4) and case.failed == []
