"""Several pieces of work as one stream."""

import asyncio

import numpy as np
import pytest

from actors.streams import as_they_end
from lwz_ray.records import Completion, VersionSpan

DONE = Completion("", np.zeros(0, np.int32), np.zeros(0, np.float32), "stop", (VersionSpan(0, 0, 0),))


async def test_what_ended_with_an_error_is_not_lost_by_it() -> None:
    stopped = asyncio.Event()

    async def work(number: int) -> Completion:
        if number == 0:
            raise RuntimeError("gone")
        if number == 3:
            try:
                await asyncio.sleep(60.0)
            finally:
                stopped.set()
        return DONE

    came = []
    with pytest.raises(RuntimeError, match="gone"):
        async for index, _ in as_they_end({i: work(i) for i in range(4)}):
            came.append(index)
    assert came == [1, 2] and stopped.is_set()
