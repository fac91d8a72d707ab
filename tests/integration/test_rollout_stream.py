"""Samples through Ray: each arrives when it ends, errors keep their kind, and nobody writes for a reader that left."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from actors.pool import RolloutPool
from lwz_ray.errors import WaitTimeoutError
from lwz_ray.records import RolloutRequest
from tests.rollout_parts import collect

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def actor(ray_cluster: None) -> Iterator[Any]:
    """A Ray actor with the real worker around the tiny engine, whose texts never end by themselves."""
    import ray
    import torch

    from actors.engine import EngineSettings
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

        async def stream(self, request: RolloutRequest, timeout_s: float) -> CompletionStream:
            limits = {0: 5}  # sample 0 is short, the others as long as they are asked to be
            for index in range(request.num_samples):
                limit = limits.get(index, request.max_tokens)
                one = replace(request, num_samples=1, seed=request.seed + index, max_tokens=limit)
                async for _, completion in self.worker.stream(one, timeout_s):
                    yield index, completion

        async def num_writing(self) -> int:
            return sum("_one" in repr(task) for task in asyncio.all_tasks())

    handle: Any = TinyActor.remote()
    ray.get(handle.start.remote(), timeout=60)
    yield handle
    ray.kill(handle)


async def until_idle(actor: Any) -> None:
    """Wait until the actor writes nothing."""
    end = time.monotonic() + 20.0
    while writing := await asyncio.wait_for(actor.num_writing.remote(), 20.0):
        assert time.monotonic() < end, f"waited 20 s for the engine to be idle; it still writes {writing}"
        await asyncio.sleep(0.05)


async def test_the_first_sample_is_here_while_the_second_is_written_and_closing_ends_it(actor: Any) -> None:
    from actors.remote import stream_of

    stream = RolloutPool([stream_of(actor)], 30.0).stream(RolloutRequest([1], 2, seed=1))
    index, completion = await anext(stream)
    assert (index, completion.num_tokens, completion.finish_reason) == (0, 5, "length")
    assert await asyncio.wait_for(actor.num_writing.remote(), 20.0) == 1
    await stream.aclose()
    await until_idle(actor)


async def test_a_cancelled_reader_ends_it_too(actor: Any) -> None:
    from actors.remote import stream_of

    reader = asyncio.create_task(collect(RolloutPool([stream_of(actor)], 30.0).stream(RolloutRequest([1], 2, seed=1))))
    give_up = time.monotonic() + 20.0
    while (writing := await asyncio.wait_for(actor.num_writing.remote(), 20.0)) != 1:
        assert time.monotonic() < give_up, f"waited 20 s for one sample to be written, {writing} were seen"
        await asyncio.sleep(0.02)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await until_idle(actor)


async def test_a_whole_group_and_a_deadline(actor: Any) -> None:
    from actors.remote import stream_of

    texts = await collect(RolloutPool([stream_of(actor)], 30.0).stream(RolloutRequest([1], 3, seed=1, max_tokens=7)))
    assert [t.num_tokens for t in texts] == [5, 7, 7]
    with pytest.raises(WaitTimeoutError, match=r"waited 1 s for 1 of 1 completions of request r\d+ and gave up"):
        await collect(RolloutPool([stream_of(actor)], 1.0).stream(RolloutRequest([1], 2, seed=1)))
    await until_idle(actor)
