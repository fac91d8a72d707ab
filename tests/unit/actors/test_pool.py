"""The pool of rollout workers: who is asked, and what becomes of a stream that is late, short, wrong or given up."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from actors.engine import EngineSettings
from actors.pool import RolloutPool
from actors.repetition_stop import RepetitionRule
from actors.streams import CompletionStream, StreamCall
from actors.tiny_engine import TinyEngine
from actors.worker import RolloutWorker
from lwz_ray.errors import InfrastructureError, WaitTimeoutError
from lwz_ray.records import Completion, RolloutRequest, VersionSpan
from tests.rollout_parts import collect

SETTINGS = EngineSettings(
    model_path="", dtype="float32", max_length_tokens=64, max_num_seqs=8, temperature=1.0, top_p=1.0, max_tokens=400,
    stop="</answer>",
)  # fmt: skip
UNIFORM = torch.zeros(8, 8)


def completion(text: str) -> Completion:
    one = np.ones(1, dtype=np.int32)
    return Completion(text, one, -one.astype(np.float32), "stop", (VersionSpan(0, 1, 0),))


def sending(indices: Sequence[int]) -> StreamCall:
    """A replica that sends a sample of each index, whatever it is asked for."""

    async def stream(request: RolloutRequest, timeout_s: float) -> CompletionStream:
        for index in indices:
            yield index, completion(f"t{index}")

    return stream


@pytest_asyncio.fixture
async def worker(tmp_path: Path) -> AsyncIterator[RolloutWorker]:
    worker = RolloutWorker(TinyEngine(SETTINGS, UNIFORM), (str(tmp_path),), 1000)
    await worker.start()
    yield worker
    await worker.close()


async def test_groups_go_to_the_replica_with_the_fewest_open() -> None:
    asked: list[int] = []
    release = asyncio.Event()

    def replica(number: int) -> StreamCall:
        async def stream(request: RolloutRequest, timeout_s: float) -> CompletionStream:
            asked.append(number)
            await release.wait()
            yield 0, completion("t")

        return stream

    pool = RolloutPool([replica(0), replica(1), replica(2)], 5.0)
    calls = [asyncio.create_task(collect(pool.stream(RolloutRequest([1], 1, s)))) for s in range(7)]
    await asyncio.sleep(0.01)
    assert asked == [0, 1, 2, 0, 1, 2, 0]
    release.set()
    await asyncio.gather(*calls)


async def test_samples_come_as_they_end(worker: RolloutWorker) -> None:
    """Token 0 ends a text: of equal pace, the shorter text comes first."""
    pool = RolloutPool([worker.stream], 5.0)
    lengths = [(c.num_tokens, index) async for index, c in pool.stream(RolloutRequest([1], 8, seed=3))]
    assert all(a[0] <= b[0] for a, b in pairwise(lengths))
    assert sorted(index for _, index in lengths) == list(range(8))
    assert [index for _, index in lengths] != list(range(8))


async def test_a_reader_that_stops_early_leaves_nothing_running(worker: RolloutWorker) -> None:
    before = asyncio.all_tasks()
    stream = RolloutPool([worker.stream], 5.0).stream(RolloutRequest([1], 8, seed=3))
    await anext(stream)
    assert len(asyncio.all_tasks() - before) in range(1, 8)
    await stream.aclose()
    assert asyncio.all_tasks() == before


async def test_temperature_and_length_of_one_request(worker: RolloutWorker) -> None:
    pool = RolloutPool([worker.stream], 5.0)
    texts = await collect(pool.stream(RolloutRequest([1], 8, 5, temperature=0.5, max_tokens=3)))
    assert max(c.num_tokens for c in texts) == 3
    # Equal logits stay equal at any temperature; unequal ones grow apart.
    np.testing.assert_allclose(np.concatenate([c.rollout_logprobs for c in texts]), -np.log(8.0), rtol=1e-6)
    skewed = RolloutWorker(TinyEngine(SETTINGS, torch.tensor([[0.0, np.log(3.0)]] * 2)), (), 1000)
    await skewed.start()
    (cold,) = await collect(
        RolloutPool([skewed.stream], 5.0).stream(RolloutRequest([1], 1, 5, temperature=0.5, max_tokens=1))
    )
    assert float(np.exp(cold.rollout_logprobs[0])) == pytest.approx(0.9 if cold.token_ids[0] else 0.1)


async def test_a_replicas_error_is_passed_on_and_frees_its_place(worker: RolloutWorker) -> None:
    class Broken(TinyEngine):
        async def _one(self, *args: object) -> Completion:
            raise InfrastructureError("no memory left")

    broken = RolloutWorker(Broken(SETTINGS, UNIFORM), (), 1000)
    await broken.start()
    pool = RolloutPool([broken.stream], 5.0)
    for _ in range(2):
        with pytest.raises(InfrastructureError, match="no memory left"):
            await collect(pool.stream(RolloutRequest([1], 1, 0)))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 2], "rollout replica 0 ended its stream without 1 of 3 samples"),
        ([0, 1, 1], "rollout replica 0 sent sample 1 unasked or twice"),
        ([0, 1, 3], "rollout replica 0 sent sample 3 unasked or twice"),
    ],
)
async def test_a_stream_that_is_not_the_group_is_an_error(indices: list[int], message: str) -> None:
    with pytest.raises(InfrastructureError, match=message):
        await collect(RolloutPool([sending(indices)], 5.0).stream(RolloutRequest([1], 3, 0)))


async def test_a_replica_that_does_not_answer_is_named(worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.pool.MARGIN_S", -4.9)
    await worker.engine.pause()
    pool = RolloutPool([worker.stream], 5.0)
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.1 s for rollout replica 0 to answer and gave up"):
        await collect(pool.stream(RolloutRequest([1], 2, 0)))
    await worker.engine.resume()
    assert len(await collect(pool.stream(RolloutRequest([1], 2, 0, max_tokens=4)))) == 2


async def test_a_looping_sample_ends_early() -> None:
    """Tokens 2 and 3 follow each other for ever; with equal logits texts go on at random."""
    logits = torch.zeros(8, 8)
    logits[2, 3] = logits[3, 2] = 100.0
    logits[:, 0] = -100.0
    rule = RepetitionRule(max_pattern_tokens=8, min_repeats=3, min_looping_tokens=12, check_every_tokens=1)
    settings = EngineSettings(
        model_path="", dtype="float32", max_length_tokens=64, max_num_seqs=8, temperature=1.0, top_p=1.0,
        max_tokens=60, stop="", repetition_stop=rule,
    )  # fmt: skip
    worker = RolloutWorker(TinyEngine(settings, logits), (), 1000)
    await worker.start()
    texts = await collect(RolloutPool([worker.stream], 5.0).stream(RolloutRequest([2], 2, seed=1)))
    for text in texts:
        assert text.finish_reason == "repetition"
        assert text.token_ids.tolist() == [3, 2] * 6  # 12 tokens of a pattern of 4, three times
        assert [(s.start, s.stop) for s in text.version_spans] == [(0, 12)]
    logits[2, 3] = logits[3, 2] = 0.0
    free = RolloutWorker(TinyEngine(settings, logits), (), 1000)
    await free.start()
    texts = await collect(RolloutPool([free.stream], 5.0).stream(RolloutRequest([2], 2, seed=1)))
    assert [(t.finish_reason, t.num_tokens) for t in texts] == [("length", 60)] * 2
