"""The pool of rollout engines: what becomes of a sample when it is interrupted, late, or loses its engine."""

import asyncio

import pytest

from actors.dispatch import DispatchSettings
from actors.engine import DirtyEngineError
from actors.pool import RolloutPool
from actors.streams import CompletionStream
from actors.tasks import WorkerRequest, attempt_seed
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError
from tests.pool_parts import HandEngine, ask, completion, make_pool, settle


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.dispatcher.RETRY_S", 0.0)
    monkeypatch.setattr("actors.pending.FRUITLESS_WAIT_S", 0.0)


async def test_what_was_interrupted_goes_on_from_its_tokens_on_any_engine() -> None:
    pool, engines = make_pool("a", "b", concurrency="fixed", max_num_seqs=2)
    calls = [ask(pool, 2, seed=7), ask(pool, 2, seed=20), ask(pool, 2, seed=30)]
    await settle()
    engines["a"].end(engines["a"].calls[0], 0, 5, "abort")
    engines["b"].end(engines["b"].calls[0], 1, 9)
    await settle()
    # Engine a is asked again at once: a group that is begun goes before the third, which is not.
    (again,) = engines["a"].requests[1].tasks
    assert (again.sample_index, again.attempt, again.seed) == (0, 1, attempt_seed(7, 0, 1))
    assert again.prior is not None and again.prior.token_ids.tolist() == [1, 2, 3, 4, 5]
    assert engines["b"].sent()[1:] == [[(0, 0, 0)]]
    for _ in range(3):
        engines["a"].end_all(12)
        engines["b"].end_all(12)
        await settle()
    assert [[c.num_tokens for c in texts] for texts in await asyncio.gather(*calls)] == [[12, 12], [12, 9], [12, 12]]
    assert pool.metrics()["dispatch/taken_up"] == 1


async def test_interruptions_count_against_nothing_and_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.pending.FRUITLESS_WAIT_S", 0.02)
    pool, engines = make_pool("a", timeout_s=0.5, max_sample_attempts=1)
    call = ask(pool, seed=1)
    for _ in range(4):
        await settle()
        engines["a"].end_all(len(engines["a"].requests), "abort")
    for _ in range(2000):
        await settle(2)
        engines["a"].end_all(4, "abort")
    # After four with a new token each come those without one: every wait is twice the last, 0.02 s, 0.04 s, 0.08 s, ….
    assert 4 < len(engines["a"].requests) < 12
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.5 s for 1 of 1 samples of a prompt \(1 "):
        await call


async def test_samples_of_a_lost_engine_are_written_again_elsewhere() -> None:
    pool, engines = make_pool("a", "b", max_sample_attempts=2)
    call = ask(pool, 3, seed=7)
    await settle()
    engines["a"].end(engines["a"].calls[0], 1, 5)
    await settle()
    pool.lose_worker("a", "its process is gone")
    await settle()
    assert engines["b"].sent() == [[(0, 1, 0), (2, 1, 0)]]
    assert [t.seed for t in engines["b"].requests[0].tasks] == [attempt_seed(7, 0, 1), attempt_seed(7, 2, 1)]
    assert engines["a"].calls == []
    pool.lose_worker("a", "reported twice")
    engines["b"].end_all(6)
    assert [c.num_tokens for c in await call] == [6, 5, 6]
    assert pool.metrics()["dispatch/redispatched"] == 2


async def test_a_lost_sample_keeps_what_was_taken_up_before() -> None:
    pool, engines = make_pool("a")
    call = ask(pool)
    await settle()
    engines["a"].end_all(5, "abort")
    await settle()
    pool.lose_worker("a", "gone")
    engines["b"] = HandEngine()
    pool.add_worker("b", engines["b"].stream)
    await settle()
    assert engines["b"].sent() == [[(0, 2, 5)]]
    engines["b"].end_all(8)
    assert [c.num_tokens for c in await call] == [8]


async def test_attempts_end_with_the_reasons() -> None:
    failed: list[tuple[str, str]] = []
    pool, engines = make_pool("a", max_sample_attempts=3)
    pool.on_failed = lambda name, reason: failed.append((name, reason))
    call = ask(pool, 2)
    for message in ("no memory left", "the host\nis gone"):
        await settle()
        engines["a"].calls[0].events.put_nowait(InfrastructureError(message))
    await settle()
    engines["a"].calls[0].events.put_nowait(None)
    expected = (
        r"sample 0 of a prompt lost its engine 3 times, failures\.max_sample_attempts=3 allows no more attempts; the "
        r"last reasons: rollout engine a: InfrastructureError: no memory left; rollout engine a: InfrastructureError: "
        r"is gone; rollout engine a: InfrastructureError: it ended its stream without 2 samples"
    )
    with pytest.raises(InfrastructureError, match=expected):
        await call
    assert [name for name, _ in failed] == ["a"] * 3
    assert failed[0][1] == "InfrastructureError: no memory left"
    assert pool.workers == ("a",)


async def test_an_engine_that_fails_gets_nothing_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache is the emptiest: without a pause it would draw every group."""
    monkeypatch.setattr("actors.dispatcher.RETRY_S", 60.0)
    pool, engines = make_pool("a", "b")
    calls = [ask(pool, seed=s) for s in (0, 100)]
    await settle()
    engines["a"].calls[0].events.put_nowait(RuntimeError("gone"))
    await settle()
    calls.append(ask(pool, seed=200))
    await settle()
    assert (len(engines["a"].requests), len(engines["b"].requests)) == (1, 3)
    engines["b"].end_all()
    await asyncio.gather(*calls)


async def test_an_engine_that_refuses_is_named_and_no_attempt_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.dispatcher.RETRY_S", 0.01)

    async def refuse(request: WorkerRequest, timeout_s: float) -> CompletionStream:
        raise DirtyEngineError("update to policy version 3 failed: no space left")
        yield 0, completion(1)

    pool = RolloutPool(0.3, DispatchSettings(max_sample_attempts=1))
    pool.add_worker("a", refuse)
    expected = r"there are a \(failed last with DirtyEngineError: update to policy version 3 failed: no space left\)"
    with pytest.raises(WaitTimeoutError, match=expected):
        await ask(pool)
    assert pool.metrics()["dispatch/redispatched"] > 1


async def test_a_users_error_is_passed_on_at_once() -> None:
    pool, engines = make_pool("a", "b")
    call = ask(pool, 2)
    await settle()
    engines["a"].calls[0].events.put_nowait(UserError("the prompt has 9 tokens, the model takes 8"))
    with pytest.raises(UserError, match="the prompt has 9 tokens, the model takes 8"):
        await call
    assert engines["b"].requests == []


@pytest.mark.parametrize("indices", [[0, 1, 1], [0, 1, 3]])
async def test_a_sample_that_nobody_asked_for_is_a_failure(indices: list[int]) -> None:
    async def stream(request: WorkerRequest, timeout_s: float) -> CompletionStream:
        for index in indices:
            yield index, completion(3)

    pool = RolloutPool(5.0, DispatchSettings(max_sample_attempts=1))
    pool.add_worker("a", stream)
    with pytest.raises(InfrastructureError, match=f"it sent sample {indices[-1]} unasked or twice"):
        await ask(pool, 3)


async def test_an_engine_that_fails_after_its_last_sample_is_told_to_its_owner() -> None:
    """The group lacks nothing, so it is whole."""
    failed: list[tuple[str, str]] = []

    async def stream(request: WorkerRequest, timeout_s: float) -> CompletionStream:
        yield 0, completion(3)
        raise InfrastructureError("no memory left")

    pool = RolloutPool(5.0, DispatchSettings(), lambda name, reason: failed.append((name, reason)))
    pool.add_worker("a", stream)
    assert [c.num_tokens for c in await ask(pool)] == [3]
    assert failed == [("a", "InfrastructureError: no memory left")]
    assert pool.metrics()["dispatch/redispatched"] == 0


async def test_draining_waits_then_interrupts() -> None:
    pool, engines = make_pool("b")
    engines["a"] = HandEngine()

    async def interrupt() -> None:
        engines["a"].end_all(4, "abort")

    pool.add_worker("a", engines["a"].stream, interrupt)
    calls = [ask(pool, 2), ask(pool, 2)]
    await settle()
    drain = asyncio.create_task(pool.remove_worker("a", 0.5))
    await settle()
    calls.append(ask(pool, 1))
    await settle()
    assert (pool.workers, len(engines["a"].requests)) == (("b",), 1)
    engines["a"].end(engines["a"].calls[0], 0, 7)
    await drain
    await settle()
    assert engines["b"].sent() == [[(0, 0, 0), (1, 0, 0)], [(0, 0, 0)], [(1, 1, 4)]]
    engines["b"].end_all(9)
    assert [[c.num_tokens for c in texts] for texts in await asyncio.gather(*calls)] == [[9, 9], [7, 9], [9]]
    with pytest.raises(UserError, match="rollout engine b is the last one of the pool and stays"):
        await pool.remove_worker("b", 1.0)
    with pytest.raises(ValueError, match="there is no engine a to remove, there are b"):
        await pool.remove_worker("a", 1.0)


async def test_what_a_drain_cannot_interrupt_is_begun_anew_and_not_counted() -> None:
    pool, engines = make_pool("a", "b", max_sample_attempts=1)
    call = ask(pool)
    await settle()
    await pool.remove_worker("a", 0.0)
    await settle()
    assert engines["a"].calls == [] and engines["b"].sent() == [[(0, 1, 0)]]
    engines["b"].end_all()
    assert len(await call) == 1


async def test_a_sample_over_its_deadline_is_handed_out_as_it_is() -> None:
    pool, engines = make_pool("a", sample_deadline_s=0.5)
    call = ask(pool, 3)
    await settle()
    task = engines["a"].requests[0].tasks[0]
    assert task.remaining_s == pytest.approx(0.5)
    engines["a"].end(engines["a"].calls[0], 0, 4, "abort")
    await settle()
    again = engines["a"].requests[1].tasks[0]
    assert again.remaining_s is not None and again.remaining_s < 0.5
    await asyncio.sleep(0.6)
    engines["a"].end_all(6, "abort")
    texts = await call
    assert [(c.finish_reason, c.num_tokens) for c in texts] == [("abort", 6)] * 3
    assert pool.metrics()["dispatch/past_deadline"] == 3


async def test_a_deadline_also_ends_a_sample_that_waits_to_go_on() -> None:
    pool, engines = make_pool("a", sample_deadline_s=0.05)
    call = ask(pool)
    await settle()
    engines["a"].end_all(4, "abort")
    await settle()
    pool.lose_worker("a", "gone")
    assert [(c.finish_reason, c.num_tokens) for c in await call] == [("abort", 4)]


async def test_a_sample_of_which_nothing_is_left_gets_its_whole_time_again() -> None:
    pool, engines = make_pool("a", sample_deadline_s=0.05)
    call = ask(pool)
    await settle()
    await asyncio.sleep(0.06)
    engines["a"].end_all(0, "abort")
    await settle()
    (task,) = engines["a"].requests[1].tasks
    assert (task.prior, task.attempt) == (None, 1)
    assert task.remaining_s == pytest.approx(0.05)
    engines["a"].end_all(3)
    assert [c.finish_reason for c in await call] == ["stop"]
