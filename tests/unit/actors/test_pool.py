"""The pool of rollout engines: who is asked for which sample, and for how long somebody waits."""

import asyncio
from itertools import pairwise

import pytest

from lwz_ray.errors import InfrastructureError, WaitTimeoutError
from lwz_ray.records import RolloutRequest
from tests.pool_parts import HandEngine, ask, load, make_pool, settle


def prompts(engine: HandEngine) -> list[int]:
    """Return the seeds of the groups that an engine was asked for, in order."""
    return [request.tasks[0].seed for request in engine.requests]


async def test_groups_go_to_the_engine_with_the_least_to_write() -> None:
    pool, engines = make_pool("a", "b", "c")
    calls = [ask(pool, seed=s) for s in range(7)]
    await settle()
    assert {name: prompts(engine) for name, engine in engines.items()} == {"a": [0, 3, 6], "b": [1, 4], "c": [2, 5]}
    for engine in engines.values():
        engine.end_all()
    await asyncio.gather(*calls)


async def test_round_robin_deals_in_turn_whatever_engines_hold() -> None:
    pool, engines = make_pool("a", "b", routing="round_robin", order="first_come", concurrency="fixed", max_num_seqs=2)
    calls = [ask(pool, seed=s) for s in range(4)]
    await settle()
    engines["b"].end_all()
    calls.append(ask(pool, seed=4))
    await settle()
    assert (prompts(engines["a"]), prompts(engines["b"])) == ([0, 2], [1, 3])
    engines["a"].end_all()
    await settle()
    assert prompts(engines["a"]) == [0, 2, 4]
    engines["a"].end_all()
    await asyncio.gather(*calls)


@pytest.mark.parametrize(
    ("order", "expected"), [("longest_first", [0, 4, 3, 1, 2, 5]), ("first_come", [0, 1, 2, 3, 4, 5])]
)
async def test_the_order_of_what_waits(order: str, expected: list[int]) -> None:
    """Earlier rounds first, then the longest request, then the oldest; group 0 is being written by then."""
    pool, engines = make_pool("a", order=order, concurrency="fixed", max_num_seqs=1)
    first = ask(pool, seed=0, requested_words=10)
    await settle()
    words_and_rounds = [(500, 1), (100, 1), (50, 0), (60, 0), (100, 1)]
    calls = [ask(pool, seed=s, requested_words=w, round_index=r) for s, (w, r) in enumerate(words_and_rounds, start=1)]
    for _ in range(6):
        await settle()
        engines["a"].end_all()
    await asyncio.gather(first, *calls)
    assert prompts(engines["a"]) == expected


async def test_a_group_is_sent_together_as_far_as_there_is_room() -> None:
    pool, engines = make_pool("a", "b", concurrency="fixed", max_num_seqs=3)
    first, second = ask(pool, 4, seed=10), ask(pool, 4, seed=20, temperature=0.5, max_tokens=9)
    await settle()
    assert engines["a"].sent() == [[(0, 0, 0), (1, 0, 0), (2, 0, 0)]]
    assert engines["b"].sent() == [[(3, 0, 0)], [(0, 0, 0), (1, 0, 0)]]
    request = engines["b"].requests[1]
    assert (request.prompt_token_ids, request.temperature, request.max_tokens) == ((1, 2), 0.5, 9)
    assert [t.seed for t in request.tasks] == [20, 21]
    engines["a"].end(*engines["a"].writing[0])
    await settle()
    assert engines["a"].sent()[1:] == [[(2, 0, 0)]]
    for _ in range(2):
        engines["a"].end_all()
        engines["b"].end_all()
        await settle()
    assert [len(texts) for texts in await asyncio.gather(first, second)] == [4, 4]


async def test_the_cache_decides_how_much_runs_at_once() -> None:
    """Of 1,000 tokens 500 may be in use. A sample counts 59.3: a fourth of its prompt of 2, and 0.6 of 98 to come."""
    pool, engines = make_pool("a", cache_target=0.5, max_num_seqs=64)
    pool.observe("a", load())
    calls = [ask(pool, 4, seed=s * 10, max_tokens=98) for s in range(3)]
    await settle()
    assert [len(tasks) for tasks in engines["a"].sent()] == [4, 4]
    for _ in range(12):
        engines["a"].end_all(98)
        await settle()
    await asyncio.gather(*calls)


async def test_what_is_next_is_not_overtaken_by_what_would_fit() -> None:
    pool, engines = make_pool("a", cache_target=0.5, order="first_come")
    pool.observe("a", load())
    calls = [ask(pool, seed=s, max_tokens=most) for s, most in enumerate((700, 600, 20))]
    await settle()
    assert prompts(engines["a"]) == [0]
    engines["a"].end_all()
    await settle()
    assert prompts(engines["a"]) == [0, 1, 2]
    engines["a"].end_all()
    await asyncio.gather(*calls)


async def test_an_engine_without_samples_takes_one_whatever_is_expected() -> None:
    pool, engines = make_pool("a", cache_target=0.5)
    pool.observe("a", load(cache_usage=1.0, cache_tokens=10))
    call = ask(pool, 3, max_tokens=1000)
    for number in range(1, 4):
        await settle()
        assert [len(tasks) for tasks in engines["a"].sent()] == [1] * number
        engines["a"].end_all()
    assert len(await call) == 3


async def test_without_an_engine_a_group_waits_for_one_until_its_time_is_over() -> None:
    pool, _ = make_pool(timeout_s=0.2)
    expected = r"waited 0\.2 s for 2 of 2 samples of a prompt \(2 to be sent, but no rollout engine is there\)"
    with pytest.raises(WaitTimeoutError, match=expected):
        await ask(pool, 2)
    pool, _ = make_pool("a")
    call = ask(pool, 2)
    await settle()
    pool.lose_worker("a", "gone")
    await settle()
    late = HandEngine()
    pool.add_worker("late", late.stream)
    await settle()
    late.end_all()
    assert len(await call) == 2


async def test_a_group_that_is_too_late_says_what_it_waits_for() -> None:
    pool, engines = make_pool("a", timeout_s=0.2, concurrency="fixed", max_num_seqs=2)
    expected = r"for 3 of 4 samples of a prompt \(1 from rollout engine a, 2 to be sent to a rollout engine with room, "
    call = ask(pool, 4)
    await settle()
    pool._dispatcher.workers["a"].draining = True
    engines["a"].end(engines["a"].calls[0], 0)
    with pytest.raises(WaitTimeoutError, match=expected + r"there are a\) and gave up"):
        await call
    assert engines["a"].calls == []
    assert engines["a"].timeouts_s[0] == pytest.approx(30.2, abs=0.1)


async def test_samples_come_as_they_end_and_an_early_end_leaves_nothing_running() -> None:
    pool, engines = make_pool("a")
    before = asyncio.all_tasks()
    stream = pool.stream(RolloutRequest([1], 3, 0))
    first = asyncio.create_task(anext(stream))
    await settle()
    engines["a"].end(engines["a"].calls[0], 2)
    assert (await first)[0] == 2
    await stream.aclose()
    assert engines["a"].calls == [] and asyncio.all_tasks() == before
    assert pool.metrics()["dispatch/queue"] == 0


async def test_a_group_that_is_given_up_as_it_is_sent_leaves_nothing_behind() -> None:
    """Its stream is cancelled before it has begun."""
    pool, engines = make_pool("a")
    before = asyncio.all_tasks()
    call = asyncio.create_task(anext(pool.stream(RolloutRequest([1], 2, 0))))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await settle()
    assert engines["a"].requests == [] and asyncio.all_tasks() == before
    assert pool._dispatcher.workers["a"].sendings == set()


async def test_closing_tells_whoever_waits() -> None:
    pool, engines = make_pool("a")
    before = asyncio.all_tasks()
    call = ask(pool, 2)
    await settle()
    await pool.close()
    with pytest.raises(InfrastructureError, match="the rollout pool was closed"):
        await call
    with pytest.raises(InfrastructureError, match="the rollout pool was closed"):
        await ask(pool)
    assert engines["a"].calls == [] and asyncio.all_tasks() == before


async def test_metrics_count_since_they_were_asked_for() -> None:
    pool, engines = make_pool("a", "b", concurrency="fixed", max_num_seqs=1)
    pool.observe("a", load(cache_usage=0.5, num_preemptions=2))
    pool.observe("b", load(cache_usage=0.25))
    pool.observe("a", load(cache_usage=0.5, num_preemptions=5))
    pool.observe("gone", load(num_preemptions=9))
    calls = [ask(pool, 3)]
    await settle()
    found = pool.metrics()
    expected = {"engines": 2, "queue": 1, "open": 2, "preemptions": 5, "cache_usage": 0.375, "redispatched": 0}
    assert {key: found[f"dispatch/{key}"] for key in expected} == expected
    assert 0 <= found["dispatch/wait_s"] <= found["dispatch/wait_max_s"]
    assert "rollout/sample_s_max" not in found
    for _ in range(3):
        engines["a"].end_all()
        engines["b"].end_all()
        await settle()
    await asyncio.gather(*calls)
    found = pool.metrics()
    assert found["dispatch/preemptions"] == found["dispatch/queue"] == found["dispatch/open"] == 0
    tail = [found[f"rollout/sample_s_{key}"] for key in ("p50", "p95", "max")]
    assert all(a <= b for a, b in pairwise([0.0, *tail]))
