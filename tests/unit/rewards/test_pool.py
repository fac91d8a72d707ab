"""The pool over in-process replicas: order, spreading, one retry, time limits."""

import asyncio
from collections.abc import Sequence

import pytest

from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError
from rewards.pairs import ClassifierScores
from rewards.pool import RewardPool


class Worker:
    """A replica that scores a text by its length; it can be slow, fail, or answer short."""

    def __init__(self, delay_s: float = 0.0, error: Exception | None = None, short: bool = False) -> None:
        self.delay_s, self.error, self.short = delay_s, error, short
        self.batches: list[list[str]] = []

    async def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        self.batches.append(list(texts))
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        values = tuple(float(len(p) * 100 + len(t)) for p, t in zip(prompts, texts, strict=True))
        return ClassifierScores(values[1:] if self.short else values, num_truncated=1)


async def test_scores_keep_the_order_over_batches_and_replicas() -> None:
    workers = [Worker(0.02), Worker()]
    pool = RewardPool(workers, batch_size=2, request_timeout_s=5)
    scores = await pool.score_texts(["a", "bb", "c", "d", "e"], ["1", "22", "333", "4444", "55555"])
    assert scores == [101.0, 202.0, 103.0, 104.0, 105.0]
    assert [w.batches for w in workers] == [[["1", "22"], ["55555"]], [["333", "4444"]]]
    assert (pool.num_replicas, pool.num_truncated, pool.num_retries) == (2, 3, 0)


async def test_nothing_to_score_asks_nobody() -> None:
    worker = Worker()
    assert await RewardPool([worker], 2, 5).score_texts([], []) == []
    assert worker.batches == []


async def test_the_replica_with_fewer_pairs_in_flight_is_asked() -> None:
    workers = [Worker(0.2), Worker()]
    pool = RewardPool(workers, batch_size=8, request_timeout_s=5)
    slow = asyncio.create_task(pool.score_texts(["p"] * 3, ["a"] * 3))
    await asyncio.sleep(0.02)
    await pool.score_texts(["p"], ["b"])
    await pool.score_texts(["p"], ["c"])
    await slow
    assert [w.batches for w in workers] == [[["a", "a", "a"]], [["b"], ["c"]]]


async def test_a_failed_batch_goes_to_another_replica_and_the_failed_one_is_passed_over() -> None:
    workers = [Worker(error=OSError("the process is gone")), Worker()]
    pool = RewardPool(workers, batch_size=4, request_timeout_s=5)
    assert await pool.score_texts(["p"], ["a"]) == [101.0]
    assert await pool.score_texts(["p"], ["bb"]) == [102.0]
    assert [w.batches for w in workers] == [[["a"]], [["a"], ["bb"]]]
    assert pool.num_retries == 1


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
    expected = (
        "reward replica 2 of 3 gave 0 scores for 1 answers; before that, reward replica 1 of 3 failed: OSError: gone"
    )
    with pytest.raises(InfrastructureError, match=expected):
        await pool.score_texts(["p"], ["a"])


async def test_a_single_replica_has_no_second_try() -> None:
    worker = Worker(delay_s=60)
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.05 s for reward replica 1 of 1 to score 1 answers"):
        await RewardPool([worker], 4, 0.1).score_texts(["p"], ["a"])
    assert len(worker.batches) == 1


async def test_an_error_of_the_user_is_passed_on_at_once() -> None:
    workers = [Worker(error=UserError("rewards.writing.max_length_tokens=8 is too small")), Worker()]
    with pytest.raises(UserError, match="max_length_tokens=8"):
        await RewardPool(workers, 4, 5).score_texts(["p"], ["a"])
    assert workers[1].batches == []


async def test_after_a_failure_no_other_batch_stays_in_flight() -> None:
    slow = Worker(delay_s=60)
    workers = [Worker(error=UserError("no")), slow]
    with pytest.raises(UserError):
        await RewardPool(workers, 1, 100).score_texts(["p", "p"], ["a", "b"])
    assert slow.batches == [["b"]]
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [t for t in others if "_score_batch" in repr(t)]


def test_impossible_settings_are_refused() -> None:
    for replicas, batch_size, timeout_s in (([], 1, 1.0), ([Worker()], 0, 1.0), ([Worker()], 1, 0.0)):
        with pytest.raises(ValueError, match="each must be above 0"):
            RewardPool(replicas, batch_size, timeout_s)
