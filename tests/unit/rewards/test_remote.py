"""What the pool hears of a reward replica whose process is gone."""

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError

from rewards.pool_queue import ReplicaLostError
from rewards.remote import as_replica


class Handle:
    """A Ray actor's handle whose calls fail."""

    def __init__(self, error: Exception) -> None:
        self.score: Any = self
        self._error = error

    async def remote(self, prompts: list[str], texts: list[str]) -> None:
        raise self._error


@pytest.mark.parametrize("error", [ActorDiedError(), OutOfMemoryError("the node ran low on memory")])
async def test_a_replica_that_died_or_was_killed_for_memory_is_lost(error: Exception):
    with pytest.raises(ReplicaLostError):
        await as_replica(Handle(error))(["a prompt"], ["a text"])


async def test_one_that_cannot_be_reached_may_come_back():
    with pytest.raises(ActorUnavailableError):
        await as_replica(Handle(ActorUnavailableError("the way is broken", None)))(["a prompt"], ["a text"])
