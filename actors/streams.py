"""Streams of completions: their type, and several pieces of work yielded as they end."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, Protocol

from actors.tasks import WorkerRequest
from lwz_ray.records import Completion

CompletionStream = AsyncGenerator[tuple[int, Completion], None]
"""(sample_index, completion) of one request, in the order in which they end.

One with finish reason `abort` was interrupted: by a weight update with `weights.mode=abort`, by one that failed, by
draining, or by its deadline. Whoever asked decides whether it is taken up again.
"""


class StreamCall(Protocol):
    """How the pool asks one worker, in-process or through Ray."""

    def __call__(self, request: WorkerRequest, timeout_s: float) -> CompletionStream: ...


async def as_they_end(works: Mapping[int, Coroutine[Any, Any, Completion]]) -> CompletionStream:
    """Run all at once and yield (key, result) as each ends; an error or an early end cancels the rest and waits.

    What ended together with an error is yielded before it is raised.
    """
    tasks = {asyncio.ensure_future(work): index for index, work in works.items()}
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda t: (t.cancelled() or t.exception() is not None, tasks[t])):
                yield tasks[task], task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
