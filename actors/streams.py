"""Streams of completions: their type, and several pieces of work yielded as they end."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Protocol

from lwz_ray.records import Completion, RolloutRequest

CompletionStream = AsyncGenerator[tuple[int, Completion], None]
"""(sample_index, completion) of one group, in the order in which they end."""


class StreamCall(Protocol):
    """How the pool asks one worker, in-process or through Ray."""

    def __call__(self, request: RolloutRequest, timeout_s: float) -> CompletionStream: ...


async def as_they_end(works: Sequence[Coroutine[Any, Any, Completion]]) -> CompletionStream:
    """Run all at once and yield (index, result) as each ends; an error or an early end cancels the rest and waits."""
    tasks = {asyncio.ensure_future(work): i for i, work in enumerate(works)}
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=tasks.__getitem__):
                yield tasks[task], task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
