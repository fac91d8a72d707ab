"""Awaiting several things as one."""

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

SLICE_S = 1.0

T = TypeVar("T")


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results in order; when one raises, or the caller stops waiting, the others are stopped too."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answered(work: Awaitable[T], timeout_s: float) -> T:
    """Return what the work returns; raises TimeoutError.

    Time for which this process itself stood still does not count: whoever was asked could answer, and nobody listened.
    """
    task = asyncio.ensure_future(work)
    left = timeout_s
    try:
        while left > 0:
            done, _ = await asyncio.wait({task}, timeout=min(SLICE_S, left))
            if done:
                return task.result()
            left -= SLICE_S
    finally:
        task.cancel()
    raise TimeoutError
