"""Samples through Ray: each arrives when it ends, errors keep their kind, and nobody writes for a reader that left."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from actors.engine import EngineLostError
from actors.tasks import WorkerRequest
from lwz_ray.errors import WaitTimeoutError
from tests.rollout_parts import collect, samples_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def tiny_actor() -> Any:
    """Start a Ray actor with the real worker around the tiny engine, whose texts never end by themselves."""
    import ray
    import torch

    from actors.engine import EngineSettings
    from actors.load import EngineLoad
    from actors.streams import CompletionStream
    from actors.tiny_engine import TinyEngine
    from actors.worker import RolloutWorker

    settings = EngineSettings(
        model_path="", dtype="float32", max_length_tokens=64, max_num_seqs=8, temperature=1.0, top_p=1.0,
        max_tokens=10**9, stop="",
    )  # fmt: skip

    @ray.remote(num_cpus=0.1)
    class TinyActor:
        async def start(self) -> None:
            logits = torch.zeros(4, 4)
            logits[:, 0] = -100.0
            self.engine = TinyEngine(settings, logits)
            self.worker = RolloutWorker(self.engine, (), 1000)
            await self.worker.start()

        async def stream(self, request: WorkerRequest, timeout_s: float) -> CompletionStream:
            limits = {0: 5}  # sample 0 is short, the others as long as they are asked to be
            for task in request.tasks:
                limit = limits.get(task.sample_index, request.max_tokens)
                one = replace(request, tasks=(task,), max_tokens=limit)
                async for item in self.worker.stream(one, timeout_s):
                    yield item

        async def interrupt(self) -> None:
            await self.worker.interrupt()

        async def heartbeat(self) -> EngineLoad:
            return await self.worker.heartbeat()

        async def die(self) -> None:
            import os

            os._exit(1)

    handle: Any = TinyActor.remote()
    ray.get(handle.start.remote(), timeout=60)
    return handle


@pytest.fixture(scope="module")
def actor(ray_cluster: None) -> Iterator[Any]:
    import ray

    handle = tiny_actor()
    yield handle
    ray.kill(handle)


async def until_writing(actor: Any, number: int) -> None:
    """Wait until the actor's engine writes so many samples."""
    end = time.monotonic() + 20.0
    while (load := await asyncio.wait_for(actor.heartbeat.remote(), 20.0)).num_running != number:
        assert time.monotonic() < end, f"waited 20 s for {number} samples to be written; the engine says {load}"
        await asyncio.sleep(0.05)


async def test_the_first_sample_is_here_while_the_second_is_written_and_closing_ends_it(actor: Any) -> None:
    from actors.remote import stream_of

    stream = stream_of(actor)(samples_of([1], 2, seed=1), 30.0)
    index, completion = await anext(stream)
    assert (index, completion.num_tokens, completion.finish_reason) == (0, 5, "length")
    await until_writing(actor, 1)
    await stream.aclose()
    await until_writing(actor, 0)


async def test_a_cancelled_reader_ends_it_too(actor: Any) -> None:
    from actors.remote import stream_of

    reader = asyncio.create_task(collect(stream_of(actor)(samples_of([1], 2, seed=1), 30.0)))
    await until_writing(actor, 1)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await until_writing(actor, 0)


async def test_a_whole_group_and_a_timeout(actor: Any) -> None:
    from actors.remote import stream_of

    texts = await collect(stream_of(actor)(samples_of([1], 3, seed=1, max_tokens=7), 30.0))
    assert [t.num_tokens for t in texts] == [5, 7, 7]
    with pytest.raises(WaitTimeoutError, match=r"waited 1 s for 1 of 1 completions of request r\d+ and gave up"):
        await collect(stream_of(actor)(samples_of([1], 2, seed=1), 1.0))
    await until_writing(actor, 0)


async def test_an_interrupted_sample_goes_on_at_another_actor(actor: Any) -> None:
    import ray

    from actors.remote import stream_of

    reader = asyncio.create_task(collect(stream_of(actor)(samples_of([1], 2, seed=1), 30.0)))
    await until_writing(actor, 1)
    await asyncio.wait_for(actor.interrupt.remote(), 20.0)
    _, prior = await reader
    assert (prior.finish_reason, prior.num_tokens > 0) == ("abort", True)
    other = tiny_actor()
    limit = prior.num_tokens + 3
    request = samples_of([1], 2, seed=7, max_tokens=limit, priors=[None, prior])
    _, whole = await collect(stream_of(other)(request, 30.0))
    ray.kill(other)
    assert (whole.finish_reason, whole.num_tokens) == ("length", limit)
    assert whole.token_ids[:-3].tolist() == prior.token_ids.tolist()


async def test_an_actor_that_dies_is_told_to_its_readers_and_to_who_asks_for_its_load(ray_cluster: None) -> None:
    from actors.remote import stream_of

    actor = tiny_actor()
    call = stream_of(actor)
    reader = asyncio.create_task(collect(call(samples_of([1], 2, seed=1), 30.0)))
    await until_writing(actor, 1)
    actor.die.remote()
    with pytest.raises(EngineLostError, match="the rollout actor is gone"):
        await asyncio.wait_for(reader, 20.0)
    with pytest.raises(EngineLostError, match="the rollout actor is gone"):
        await asyncio.wait_for(collect(call(samples_of([1], 1, seed=1), 30.0)), 20.0)
