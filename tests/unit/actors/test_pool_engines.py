"""The pool over real workers: updates, drains, deadlines and losses in the middle of texts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from actors.dispatch import DispatchSettings
from actors.engine import EngineSettings
from actors.pool import RolloutPool
from actors.repetition_stop import RepetitionRule
from actors.tiny_engine import TinyEngine
from actors.worker import RolloutWorker
from lwz_ray.records import Completion, RolloutRequest
from lwz_ray.weights import pack_buckets
from tests.rollout_parts import collect

SETTINGS = EngineSettings(
    model_path="", dtype="float32", max_length_tokens=10_000, max_num_seqs=8, temperature=1.0, top_p=1.0,
    max_tokens=400, stop="",
)  # fmt: skip
UNIFORM = torch.zeros(8, 8)
ENDLESS = torch.zeros(8, 8)
ENDLESS[:, 0] = -100.0

Start = Callable[..., Any]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Start a worker of these logits and settings; all are closed at the end."""
    workers: list[RolloutWorker] = []

    async def start(logits: torch.Tensor = ENDLESS, **changes: Any) -> RolloutWorker:
        worker = RolloutWorker(TinyEngine(replace(SETTINGS, **changes), logits), ("/tmp",), 1000)
        workers.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in workers:
        await worker.close()


def pool_of(*workers: RolloutWorker, **settings: Any) -> RolloutPool:
    pool = RolloutPool(10.0, DispatchSettings(**settings))
    for number, worker in enumerate(workers):
        pool.add_worker(f"w{number}", worker.stream, worker.interrupt)
    return pool


def ask(pool: RolloutPool, num_samples: int, **request: Any) -> "asyncio.Task[list[Completion]]":
    return asyncio.create_task(collect(pool.stream(RolloutRequest([1], num_samples, 3, **request))))


async def until_written(worker: RolloutWorker, num_tokens: int) -> None:
    """Wait until an engine has written so much, 5 s at most."""
    async with asyncio.timeout(5.0):
        while (await worker.heartbeat()).num_generated_tokens < num_tokens:  # noqa: ASYNC110, its engine has no event
            await asyncio.sleep(0)


async def test_the_same_request_gives_the_same_texts(start: Start) -> None:
    pool = pool_of(await start(UNIFORM), await start(UNIFORM))
    texts = [[c.token_ids.tolist() for c in await ask(pool, 4)] for _ in range(2)]
    assert texts[0] == texts[1] and len({tuple(t) for t in texts[0]}) == 4


async def test_samples_come_as_they_end(start: Start) -> None:
    """Token 0 ends a text: of equal pace (give or take one token), the shorter text comes first."""
    pool = pool_of(await start(UNIFORM))
    lengths = [(c.num_tokens, index) async for index, c in pool.stream(RolloutRequest([1], 8, seed=3))]
    assert all(a[0] <= b[0] + 1 for a, b in pairwise(lengths))
    assert [index for _, index in lengths] != sorted(index for _, index in lengths) == list(range(8))


async def test_temperature_and_length_of_one_request(start: Start) -> None:
    texts = await ask(pool_of(await start(UNIFORM)), 8, temperature=0.5, max_tokens=3)
    assert max(c.num_tokens for c in texts) == 3
    # Equal logits stay equal at any temperature; unequal ones grow apart.
    np.testing.assert_allclose(np.concatenate([c.rollout_logprobs for c in texts]), -np.log(8.0), rtol=1e-6)
    skewed = pool_of(await start(torch.tensor([[0.0, np.log(3.0)]] * 2)))
    (cold,) = await ask(skewed, 1, temperature=0.5, max_tokens=1)
    assert float(np.exp(cold.rollout_logprobs[0])) == pytest.approx(0.9 if cold.token_ids[0] else 0.1)


async def test_a_looping_sample_ends_early(start: Start) -> None:
    """Tokens 2 and 3 follow each other for ever; with equal logits texts go on at random."""
    logits = ENDLESS.clone()
    logits[1, 2] = logits[2, 3] = logits[3, 2] = 100.0
    rule = RepetitionRule(max_pattern_tokens=8, min_repeats=3, min_looping_tokens=12, check_every_tokens=1)
    for text in await ask(pool_of(await start(logits, repetition_stop=rule)), 2):
        assert text.finish_reason == "repetition"
        assert text.token_ids.tolist() == [2, 3] * 6  # 12 tokens of a pattern of 4, three times
    texts = await ask(pool_of(await start(ENDLESS, repetition_stop=rule)), 2, max_tokens=60)
    assert [(t.finish_reason, t.num_tokens) for t in texts] == [("length", 60)] * 2


async def test_texts_that_an_update_interrupts_go_on_on_any_engine(start: Start) -> None:
    """The engine that is updated gives back its texts; what it writes after that is of the new version."""
    first, second = await start(update_mode="abort"), await start(update_mode="abort")
    pool = pool_of(first, second)
    groups = [ask(pool, 3), ask(pool, 3)]
    await until_written(first, 60)
    for bucket in pack_buckets([(TinyEngine.TENSOR, ENDLESS)], 1, 1000):
        first.stage(bucket)
    await first.update(1, None, 5.0)
    texts = [text for group in groups for text in await group]
    assert [(t.finish_reason, t.num_tokens) for t in texts] == [("length", 400)] * 6
    assert pool.metrics()["dispatch/taken_up"] == 3
    spans = [[(s.start, s.stop, s.policy_version) for s in t.version_spans] for t in texts]
    assert all(a[0][0] == 0 and a[-1][1] == 400 and all(x[1] == y[0] for x, y in pairwise(a)) for a in spans)
    assert {v for text in spans for _, _, v in text} == {0, 1}


async def test_a_drained_engine_gives_back_what_it_has(start: Start) -> None:
    first, second = await start(), await start()
    pool = pool_of(first, second)
    group = ask(pool, 3)
    await until_written(first, 60)
    await pool.remove_worker("w0", 0.0)
    assert (await first.heartbeat()).num_running == 0
    written = (await first.heartbeat()).num_generated_tokens
    assert [t.num_tokens for t in await group] == [400] * 3
    assert (await second.heartbeat()).num_generated_tokens == 1200 - written < 1200


async def test_a_frozen_engine_that_is_taken_out_costs_only_its_own_tokens(start: Start) -> None:
    first, second = await start(), await start()
    pool = pool_of(first, second)
    group = ask(pool, 2)
    await until_written(first, 20)
    await first.engine.pause()
    pool.lose_worker("w0", "no sign of life")
    assert [t.num_tokens for t in await group] == [400] * 2
    assert (await second.heartbeat()).num_generated_tokens == 800


async def test_a_deadline_cuts_long_texts_alone(start: Start) -> None:
    pool = pool_of(await start(max_tokens=10**9), sample_deadline_s=2.0)
    short = ask(pool, 1, max_tokens=5)
    long = ask(pool, 2)
    assert [(t.finish_reason, t.num_tokens) for t in await short] == [("length", 5)]
    for text in await long:
        assert text.finish_reason == "abort" and text.num_tokens > 0
    assert pool.metrics()["dispatch/past_deadline"] == 2
