"""One Ray actor of a room of replicas, what rooms differ in, and how a sign of life is waited for."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from launch.cluster import reason_of
from launch.places import Place

SUSPICIONS = 3
"""Calls that failed within `request_timeout_s`, although the replica lives: then it is replaced."""


@dataclass(slots=True, eq=False)
class Replica:
    """One Ray actor of a room."""

    name: str
    index: int
    """The smallest number that no other replica of the room had: engines choose their cores by it."""
    place: Place
    handle: Any
    node_id: str = ""
    """After `start`."""
    pids: tuple[int, ...] = ()
    """Of the actor and its children, after `start`."""
    watch: "asyncio.Task[None] | None" = None
    suspicions: deque[float] = field(default_factory=lambda: deque(maxlen=SUSPICIONS))


class Kind(Protocol):
    """What the rooms of replicas differ in."""

    room: str
    """In the config: actors or rewards."""
    what: str
    """Of one replica, in messages."""
    source: str
    """Of its losses in the `FailureLog`."""

    def create(self, index: int, place: Place) -> Any:
        """Return the handle of a new Ray actor."""
        ...

    async def start(self, replica: Replica) -> None:
        """Wait until it is ready; fill in where it runs."""
        ...

    async def enter(self, replica: Replica) -> None:
        """Let a started one take part."""
        ...

    async def beat(self, replica: Replica) -> None:
        """Return when it has given a sign of life."""
        ...

    async def leave(self, replica: Replica) -> None:
        """Drain it: give it nothing more, and let others take what it does not end in time."""
        ...

    def lose(self, replica: Replica, reason: str) -> None:
        """Give what it was doing to others: it is gone."""
        ...

    async def disarm(self, replica: Replica) -> None:
        """End the processes below the Ray actor, which is killed next; may raise where it answers no more."""
        ...


def silence_text(limit_s: float) -> str:
    return f"no sign of life for {limit_s:g} s (failures.heartbeat_timeout_s)"


def one_line(error: BaseException) -> str:
    """Return what Ray says of a lost process, or what else went wrong, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):  # raised inside of the actor
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    return reason_of(error)
