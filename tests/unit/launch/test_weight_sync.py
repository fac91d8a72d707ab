"""Every engine gets the newest weights, early or late, and the failure of one is not that of another."""

import asyncio
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from launch import weight_sync
from lwz_ray.errors import InfrastructureError, UserError
from tests.weight_parts import Case, served, weight_case


@pytest.fixture
def case(tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    """request.param: transport, timeout_s."""
    return weight_case(tmp_path, *getattr(request, "param", ()))


async def test_each_engine_gets_weights_by_the_way_that_its_node_allows(case: Case) -> None:
    near, near_engine = await case.joined("near", node="one")
    far, far_engine = await case.joined("far", node="two")
    metrics = await case.publish(1)
    assert served(near_engine) == served(far_engine) == (1, 2)
    # 300 + 64 float32 numbers in buckets of 512 bytes: the table is one, so is what exceeds a bucket.
    assert (near.calls, far.calls) == (["update"], ["stage", "stage", "update"])
    assert metrics["weights/bytes"] == 1456.0
    assert set(metrics) == {f"weights/{k}" for k in ("stage_s", "load_s", "pause_s", "pause_mean_s", "bytes")}
    assert metrics["weights/load_s"] >= metrics["weights/pause_s"] >= metrics["weights/pause_mean_s"] > 0


@pytest.mark.parametrize("case", [("object_store", 5.0)], indirect=True)
async def test_the_object_store_can_be_asked_for_on_one_node(case: Case) -> None:
    handle, engine = await case.joined("a", node="one")
    await case.publish(1)
    assert (handle.calls, served(engine)) == (["stage", "stage", "update"], (1, 2))


@pytest.mark.parametrize("case", [("shm", 5.0)], indirect=True)
async def test_files_do_not_cross_nodes(case: Case) -> None:
    await case.publish(1)
    _, handle = await case.started("far")
    with pytest.raises(UserError, match=r"weights\.transport=shm: rollout actor far runs on node two, learner"):
        await case.sync.join("far", handle, "two")


async def test_an_engine_that_joins_before_any_publication_serves_the_model_folder(case: Case) -> None:
    engine, handle = await case.started("a")
    assert await case.sync.join("a", handle, "one") == 0
    assert (handle.calls, served(engine)) == ([], (0, 1))


@pytest.mark.parametrize("node", ["one", "two"])
async def test_a_late_joiner_gets_what_was_staged_last_and_is_not_updated_again(case: Case, node: str) -> None:
    _, early = await case.joined("early")
    await case.publish(1)
    case.train(3)
    await case.sync.stage(2)
    late, handle = await case.started("late")
    assert await case.sync.join("late", handle, node) == 2
    assert (served(late), served(early)) == ((2, 3), (1, 2))
    await case.sync.load(2)
    assert served(early) == (2, 3)
    assert handle.calls.count("update") == 1


async def test_the_last_version_stays_until_the_next_is_loaded(case: Case) -> None:
    await case.joined("a")
    await case.publish(1)
    assert case.num_staged() == 1
    await case.sync.stage(2)
    assert case.num_staged() == 2
    await case.sync.load(2)
    assert case.num_staged() == 1
    _, handle = await case.started("late")
    assert await case.sync.join("late", handle, "two") == 2
    case.rank.publication.close()
    assert list((case.folder / "learner").iterdir()) == []


async def test_joining_and_loading_take_turns(case: Case) -> None:
    await case.publish(1)
    late, handle = await case.started("late")
    late.may_load.clear()
    joining = asyncio.create_task(case.sync.join("late", handle, "one"))
    await late.asked.wait()
    case.train(3)
    await case.sync.stage(2)  # training need not wait for the engine that joins
    loading = asyncio.create_task(case.sync.load(2))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not loading.done() and case.num_staged() == 2
    late.may_load.set()
    assert await joining == 1
    await loading
    assert served(late) == (2, 3)


async def test_an_engine_that_fails_is_left_out_and_the_others_go_on(case: Case) -> None:
    good, good_engine = await case.joined("good")
    bad, bad_engine = await case.joined("bad", node="two")
    bad_engine.refusals = 1
    metrics = await case.publish(1)
    assert served(good_engine) == (1, 2) and "weights/pause_s" in metrics
    ((name, reason),) = case.failed
    assert name == "bad"
    assert reason.startswith("policy version 1 was not loaded: ") and reason.endswith("no memory for it")
    await case.publish(2)
    assert (good.calls.count("update"), bad.calls.count("update")) == (2, 1)
    assert await case.sync.join("bad", bad, "two") == 2
    assert served(bad_engine) == (2, 2)


async def test_the_last_engine_that_says_no_ends_the_load(case: Case) -> None:
    _, engine = await case.joined("only")
    engine.refusals = 1
    await case.sync.stage(1)
    with pytest.raises(InfrastructureError, match=r"no rollout engine is left .* 1: only: .*no memory for it"):
        await case.sync.load(1)


async def test_the_last_engine_may_die_under_the_load(case: Case) -> None:
    _, engine = await case.joined("only")
    engine.refusals, engine.is_gone = 1, True
    await case.publish(1)
    assert [name for name, _ in case.failed] == ["only"]


@pytest.mark.parametrize("case", [("auto", 0.1)], indirect=True)
async def test_the_last_engine_that_freezes_is_waited_for_by_whoever_replaces_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_sync, "UPDATE_MARGIN_S", 0.0)
    _, engine = await case.joined("frozen")
    engine.may_load.clear()
    await case.publish(1)
    assert [name for name, _ in case.failed] == ["frozen"]
    replacement, handle = await case.started("replacement")
    assert await case.sync.join("replacement", handle, "one") == 1
    assert served(replacement) == (1, 2)


async def test_an_engine_that_left_is_not_reported(case: Case) -> None:
    await case.joined("stays")
    _, engine = await case.joined("leaves")
    engine.refusals = 1
    engine.may_load.clear()
    loading = asyncio.create_task(case.publish(1))
    await engine.asked.wait()
    case.sync.leave("leaves")
    engine.may_load.set()
    await loading
    assert case.failed == []


async def test_only_what_was_staged_last_is_loaded(case: Case) -> None:
    with pytest.raises(RuntimeError, match="load of policy version 1, staged is None"):
        await case.sync.load(1)


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert weight_sync._told(RayTaskError("update", "", TimeoutError(), "engine", 1, "here")) == "TimeoutError"
    assert weight_sync._told(RayTaskError("update", "", ValueError("a\nb"), "engine", 1, "here")) == "b"


async def test_what_a_cancelled_load_left_under_way_ends_before_the_next(case: Case) -> None:
    handle, engine = await case.joined("a")
    engine.may_load.clear()
    loading = asyncio.create_task(case.publish(1))
    await engine.asked.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    case.train(3)
    again = asyncio.create_task(case.publish(2))
    for _ in range(20):
        await asyncio.sleep(0)
    assert handle.calls == ["update"]
    engine.may_load.set()
    await again
    assert served(engine) == (2, 3) and handle.calls == ["update", "update"]
