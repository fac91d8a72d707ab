"""What tests of rollouts share."""

import contextlib

from actors.streams import CompletionStream
from lwz_ray.records import Completion


async def collect(stream: CompletionStream) -> list[Completion]:
    """Read a stream to its end; return the completions by sample index, which must be 0, 1, 2, …."""
    async with contextlib.aclosing(stream):
        items = sorted([item async for item in stream], key=lambda item: item[0])
    assert [index for index, _ in items] == list(range(len(items)))
    return [completion for _, completion in items]
