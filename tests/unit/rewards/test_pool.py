"""The pool over in-process replicas: batches across askers, retries, time limits, replicas that come and go."""

import asyncio
from collections.abc import Sequence

import pytest

from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError
from rewards.pairs import ClassifierScores
from rewards.pool import RewardPool
from rewards.pool_queue import ReplicaLostError, TextScore


class Worker:
    """A replica that scores a text by its length; it can be slow, fail, refuse some texts, or answer short.

    Half of a text of 9 characters or more is read, in windows.
    """

    def __init__(
        self, delay_s: float = 0.0, error: Exception | None = None, short: bool = False, refuses: str = "\n"
    ) -> None:
        self.delay_s, self.error, self.short, self.refuses = delay_s, error, short, refuses
        self.batches: list[list[str]] = []
        self.scored: list[str] = []
        self.at_once = 0

    async def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        self.batches.append(list(texts))
        self.at_once += 1
        assert self.at_once == 1, "one batch at a time"
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self.at_once -= 1
        if self.error is not None:
            raise self.error
        for text in texts:
            if self.refuses in text:
                raise UserError(f"no room for {text}")
        self.scored.extend(texts)
        values = tuple(float(len(p) * 100 + len(t)) for p, t in zip(prompts, texts, strict=True))
        coverage = tuple(0.5 if len(t) > 8 else 1.0 for t in texts)
        return ClassifierScores(values[1:] if self.short else values, coverage, sum(len(t) > 8 for t in texts))


async def test_scores_keep_the_order_over_batches_and_replicas() -> None:
    workers = [Worker(0.02), Worker()]
    pool = RewardPool(workers, batch_size=2, request_timeout_s=5)
    scores = await pool.score_texts(["a", "bb", "c", "d", "e"], ["1", "22", "333", "4444", "55555"])
    assert scores == [101.0, 202.0, 103.0, 104.0, 105.0]
    assert [w.batches for w in workers] == [[["1", "22"]], [["333", "4444"], ["55555"]]]
    assert (pool.num_replicas, pool.num_windowed, pool.num_retries) == (2, 0, 0)


async def test_nothing_to_score_asks_nobody() -> None:
    worker = Worker()
    assert await RewardPool([worker], 2, 5).score_texts([], []) == []
    assert worker.batches == []


async def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 texts"):
        await RewardPool([Worker()], 2, 5).score_texts(["a", "b"], ["c"])


async def test_texts_of_different_askers_share_a_batch() -> None:
    worker = Worker(0.02)
    pool = RewardPool([worker], batch_size=4, request_timeout_s=5)
    first, *others = await asyncio.gather(*(pool.score_one("p", "x" * n) for n in (1, 2, 3, 4, 5)))
    assert first == TextScore(101.0, 1.0)
    assert [o.value for o in others] == [102.0, 103.0, 104.0, 105.0]
    assert worker.batches == [["x"], ["xx", "xxx", "xxxx", "xxxxx"]]


async def test_the_oldest_text_goes_first_with_those_nearest_in_length() -> None:
    worker = Worker(0.02)
    pool = RewardPool([worker], batch_size=2, request_timeout_s=5)
    first = asyncio.create_task(pool.score_one("p", "y"))
    await asyncio.sleep(0)
    await asyncio.gather(first, pool.score_texts(["p"] * 4, ["x" * 8, "x", "x" * 2, "x" * 7]))
    assert worker.batches == [["y"], ["x" * 8, "x" * 7], ["x", "xx"]]


async def test_coverage_of_a_text_reaches_its_asker_and_the_metrics() -> None:
    pool = RewardPool([Worker()], batch_size=4, request_timeout_s=5)
    score, _ = await asyncio.gather(pool.score_one("p", "x" * 20), pool.score_texts(["p"] * 2, ["1", "2"]))
    assert score == TextScore(120.0, 0.5)
    assert pool.metrics() == {
        "pool/replicas": 1.0,
        "pool/waiting": 0.0,
        "pool/texts": 3.0,
        "pool/batches": 2.0,
        "pool/windowed": 1.0,
        "pool/retries": 0.0,
        "pool/lost": 0.0,
        "pool/batch_fill": 0.375,
        "pool/coverage": pytest.approx(2.5 / 3),
    }
    later = pool.metrics()
    assert (later["pool/texts"], later["pool/windowed"], pool.num_windowed) == (0.0, 0.0, 1)
    assert "pool/coverage" not in later, "nothing was scored, so there is no mean"


async def test_a_failed_text_is_tried_on_another_replica_and_the_failed_one_is_passed_over() -> None:
    workers = [Worker(error=OSError("the process is gone")), Worker()]
    pool = RewardPool(workers, batch_size=4, request_timeout_s=5)
    assert await pool.score_texts(["p"], ["a"]) == [101.0]
    assert await pool.score_texts(["p"], ["bb"]) == [102.0]
    assert [w.batches for w in workers] == [[["a"]], [["a"], ["bb"]]]
    assert pool.num_retries == 1


async def test_what_failed_is_tried_again_alone() -> None:
    workers = [Worker(error=OSError("out of memory")), Worker()]
    pool = RewardPool(workers, batch_size=4, request_timeout_s=5)
    assert await pool.score_texts(["p"] * 3, ["a", "b", "c"]) == [101.0] * 3
    assert [w.batches for w in workers] == [[["a", "b", "c"]], [["a"], ["b"], ["c"]]]
    assert pool.num_retries == 3


async def test_a_failed_replica_is_asked_again_after_a_while() -> None:
    workers = [Worker(error=OSError("the process is gone")), Worker()]
    pool = RewardPool(workers, batch_size=4, request_timeout_s=0.1)
    await pool.score_texts(["p"], ["a"])
    workers[0].error = None
    await asyncio.sleep(0.15)
    await pool.score_texts(["p"], ["b"])
    assert workers[0].batches == [["a"], ["b"]]


async def test_a_late_replica_is_replaced() -> None:
    workers = [Worker(delay_s=60), Worker()]
    assert await RewardPool(workers, 4, 0.2).score_texts(["p"], ["a"]) == [101.0]


async def test_two_failures_end_the_request_with_both_reasons() -> None:
    pool = RewardPool([Worker(error=OSError("gone")), Worker(short=True), Worker()], 4, 5)
    expected = "reward replica 2 gave 0 scores for 1 answers; before that, reward replica 1 failed: OSError: gone"
    with pytest.raises(InfrastructureError, match=expected):
        await pool.score_texts(["p"], ["a"])


async def test_a_single_replica_has_no_second_try() -> None:
    worker = Worker(delay_s=60)
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.05 s for reward replica 1 to score 1 answers"):
        await RewardPool([worker], 4, 0.05).score_texts(["p"], ["a"])
    assert len(worker.batches) == 1


async def test_an_error_of_the_user_hits_its_own_text_alone() -> None:
    workers = [Worker(refuses="bad"), Worker(refuses="bad")]
    pool = RewardPool(workers, 4, 5)
    texts = ["good", "bad", "fine"]
    results = await asyncio.gather(*(pool.score_texts(["p"], [t]) for t in texts), return_exceptions=True)
    assert (results[0], results[2]) == ([104.0], [104.0])
    with pytest.raises(UserError, match="no room for bad"):
        raise results[1]  # type: ignore[misc]
    assert pool.num_retries == 0


async def test_after_a_failure_the_other_texts_of_the_asker_are_not_scored() -> None:
    worker = Worker(0.02, error=OSError("gone"))
    with pytest.raises(InfrastructureError, match="OSError: gone"):
        await RewardPool([worker], 1, 5).score_texts(["p"] * 3, ["a", "b", "c"])
    await asyncio.sleep(0.1)
    assert worker.batches in ([["a"]], [["a"], ["b"]]), "the next batch may have begun, no more"


async def test_a_replica_that_keeps_failing_leaves_and_the_last_one_stays_where_nobody_replaces_it() -> None:
    workers = [Worker(error=OSError("broken")), Worker()]
    pool = RewardPool(workers, 4, 0.05)
    for _ in range(3):
        assert await pool.score_texts(["p"], ["a"]) == [101.0]
        await asyncio.sleep(0.1)
    assert pool.num_replicas == 1
    workers[1].error = OSError("broken too")
    for _ in range(4):
        with pytest.raises(InfrastructureError, match="broken too"):
            await pool.score_texts(["p"], ["a"])
    assert pool.num_replicas == 1


async def test_whoever_replaces_replicas_hears_of_each_that_leaves() -> None:
    lost: list[tuple[str, str]] = []
    pool = RewardPool([Worker(error=OSError("broken"))], 4, 0.3, on_lost=lambda *loss: lost.append(loss))
    for _ in range(3):
        with pytest.raises(InfrastructureError, match="broken"):
            await pool.score_texts(["p"], ["a"])
    assert lost == [("1", "reward replica 1 failed: OSError: broken")]
    assert pool.num_replicas == 0


async def test_texts_wait_for_a_replica_that_is_to_come_but_not_for_ever() -> None:
    pool = RewardPool([], 4, 0.2, on_lost=lambda *loss: None)
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.2 s for a reward replica to be there"):
        await pool.score_texts(["p"], ["a"])
    scores = asyncio.create_task(pool.score_texts(["p"] * 2, ["a", "bb"]))
    await asyncio.sleep(0.02)
    pool.add_replica("1", Worker())
    assert await scores == [101.0, 102.0]


async def test_what_a_lost_replica_has_goes_to_others_without_counting_as_a_failure() -> None:
    frozen, other = Worker(60), Worker()
    pool = RewardPool([frozen], 2, 100, on_lost=lambda *loss: pytest.fail("whoever takes it out knows"))
    scores = asyncio.create_task(pool.score_texts(["p"] * 3, ["a", "bb", "ccc"]))
    await asyncio.sleep(0.02)
    for reason in ("no sign of life", "again"):
        pool.lose_replica("1", reason)
    await asyncio.sleep(0.02)
    pool.add_replica("2", other)
    assert await scores == [101.0, 102.0, 103.0]
    assert (frozen.batches, frozen.scored) == ([["a", "bb"]], [])
    assert (other.batches, pool.num_retries, pool.metrics()["pool/lost"]) == ([["a", "bb"], ["ccc"]], 0, 1.0)


async def test_a_replica_whose_process_is_gone_leaves_at_once() -> None:
    lost: list[str] = []
    gone = Worker(error=ReplicaLostError("its process died"))
    pool = RewardPool([gone, Worker()], 4, 5, on_lost=lambda name, _: lost.append(name))
    assert await pool.score_texts(["p"] * 3, ["a", "b", "c"]) == [101.0] * 3
    assert (lost, pool.num_replicas, len(gone.batches)) == (["1"], 1, 1)


async def test_a_dead_last_replica_leaves_when_another_comes() -> None:
    pool = RewardPool([Worker(error=ReplicaLostError("died"))], 4, 5)
    with pytest.raises(InfrastructureError, match="died"):
        await pool.score_texts(["p"], ["a"])
    pool.add_replica("new", Worker())
    assert await pool.score_texts(["p"], ["a"]) == [101.0]
    assert pool.num_replicas == 1


async def test_the_text_of_a_dead_last_replica_waits_for_the_one_that_replaces_it() -> None:
    lost: list[str] = []
    pool = RewardPool([Worker(error=ReplicaLostError("died"))], 4, 5, on_lost=lambda name, _: lost.append(name))
    score = asyncio.create_task(pool.score_one("p", "a"))
    await asyncio.sleep(0.05)
    assert (lost, pool.num_replicas, score.done()) == (["1"], 0, False)
    pool.add_replica("2", Worker())
    assert (await score).value == 101.0


async def test_an_added_replica_takes_what_waits() -> None:
    slow, new = Worker(0.5), Worker()
    pool = RewardPool([slow], 1, 5)
    scores = asyncio.create_task(pool.score_texts(["p"] * 3, ["a", "bb", "ccc"]))
    await asyncio.sleep(0.05)
    pool.add_replica("2", new)
    assert await scores == [101.0, 102.0, 103.0]
    assert (slow.scored, new.scored) == (["a"], ["bb", "ccc"])
    with pytest.raises(ValueError, match="there is a replica 2 already"):
        pool.add_replica("2", new)


async def test_a_removed_replica_ends_its_batch_and_gets_no_other() -> None:
    leaves, stays = Worker(0.2), Worker(0.05)
    pool = RewardPool([leaves, stays], 1, 5)
    scores = asyncio.create_task(pool.score_texts(["p"] * 6, list("abcdef")))
    await asyncio.sleep(0.02)
    await pool.remove_replica("1", timeout_s=5)
    assert leaves.scored == ["a"], "what it had is done when the call returns"
    assert await scores == [101.0] * 6
    assert sorted(leaves.scored + stays.scored) == list("abcdef")


async def test_what_a_removed_replica_does_not_end_in_time_goes_to_another() -> None:
    leaves, stays = Worker(60), Worker()
    pool = RewardPool([leaves, stays], 1, 100)
    scores = asyncio.create_task(pool.score_texts(["p"] * 2, ["a", "b"]))
    await asyncio.sleep(0.02)
    await pool.remove_replica("1", timeout_s=0.05)
    assert await scores == [101.0, 101.0]
    assert (leaves.scored, stays.scored, pool.num_retries) == ([], ["b", "a"], 0)


async def test_the_last_replica_cannot_be_removed() -> None:
    pool = RewardPool([Worker()], 1, 5)
    with pytest.raises(UserError, match="reward replica 1 is the last one"):
        await pool.remove_replica("1", 1)
    with pytest.raises(ValueError, match="no replica 7"):
        await pool.remove_replica("7", 1)
    assert await pool.score_texts(["p"], ["a"]) == [101.0]


async def test_closing_tells_those_who_wait() -> None:
    pool = RewardPool([Worker(60)], 1, 100)
    asking = asyncio.gather(pool.score_one("p", "a"), pool.score_one("p", "b"), return_exceptions=True)
    await asyncio.sleep(0.02)
    await pool.close()
    assert [str(error) for error in await asking] == ["the reward pool was closed"] * 2
    with pytest.raises(InfrastructureError, match="closed"):
        await pool.score_one("p", "c")


def test_impossible_settings_are_refused() -> None:
    for replicas, batch_size, timeout_s in (([], 1, 1.0), ([Worker()], 0, 1.0), ([Worker()], 1, 0.0)):
        with pytest.raises(ValueError, match="each must be above 0"):
            RewardPool(replicas, batch_size, timeout_s)
