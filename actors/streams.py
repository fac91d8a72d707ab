"""Streams of completions: their type, and several pieces of work yielded as they end."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, Protocol

from actors.tasks import WorkerRequest
from lwz_ray.records import Completion

CompletionStream = AsyncGenerator[tuple[int, Completion], None]
"""(sample_index, completion) of one request, in the order in which they end.

One with finish reason `abort` was interrupted: by a weight update with `weights.mode=abort`, by one that failed, by
draining, or by its deadline. Whoever asked decides whether it is taken up again.
"""

PieceStream = AsyncGenerator[str | Completion, None]
"""One sample's text in pieces, as it is written, and the whole completion at the end.

The completion is what counts: a text that was ended for looping is cut there, after its last pieces were sent.
"""


class StreamCall(Protocol):
    """How the pool asks one worker, in-process or through Ray."""

    def __call__(self, request: WorkerRequest, timeout_s: float) -> CompletionStream: ...


class PieceCall(Protocol):
    """How one worker is asked for one sample that someone reads along, in-process or through Ray."""

    def __call__(self, request: WorkerRequest, timeout_s: float) -> PieceStream: ...


async def as_it_is_written(write: Callable[[Callable[[str], None]], Coroutine[Any, Any, Completion]]) -> PieceStream:
    """Run `write(tell)` and yield what it tells, then what it returns; an early end cancels it and waits."""
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    task = asyncio.ensure_future(write(pieces.put_nowait))
    task.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        yield task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
