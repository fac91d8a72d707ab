"""What the reward pool keeps of texts and replicas, and which text goes to which replica next."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from lwz_ray.errors import InfrastructureError
from rewards.pairs import ClassifierScores

Replica = Callable[[Sequence[str], Sequence[str]], Awaitable[ClassifierScores]]
"""Scores prompts and texts; in a cluster a call of a Ray actor, see `rewards.remote.as_replica`."""


class ReplicaLostError(InfrastructureError):
    """The process of a replica is gone; it answers nothing any more."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """One text's raw score, and the share of it that the reward model read, in (0, 1]."""

    value: float
    coverage: float


@dataclass(slots=True, eq=False)
class PendingText:
    """One text on its way."""

    prompt: str
    text: str
    score: asyncio.Future[TextScore]
    size: int = field(init=False)
    """Bytes of prompt and text: near enough to tokens to put like lengths together."""
    asked: float = field(default_factory=time.monotonic)
    """On `time.monotonic`."""
    failed_on: str | None = None
    failure: Exception | None = None
    alone: bool = False
    """What failed once is tried again by itself, so that one text cannot take others down with it."""

    def __post_init__(self) -> None:
        self.size = sum(len(part.encode(errors="replace")) for part in (self.prompt, self.text))


@dataclass(slots=True, eq=False)
class Worker:
    """A replica as the pool sees it."""

    name: str
    ask: Replica
    batch: asyncio.Task[None] | None = None
    avoid_until: float = 0.0
    """On `time.monotonic`."""
    failures: int = 0
    """In a row."""
    lost: bool = False


def pick(waiting: Sequence[PendingText], worker: Worker, workers: Sequence[Worker], most: int) -> list[PendingText]:
    """Return the oldest text that `worker`, one of `workers`, may take, with those nearest to it in length."""
    able = [text for text in waiting if _may_take(worker, workers, text)]
    if not able or able[0].alone:
        return able[:1]
    size = able[0].size
    return sorted((text for text in able if not text.alone), key=lambda text: abs(text.size - size))[:most]


def _may_take(worker: Worker, workers: Sequence[Worker], text: PendingText) -> bool:
    """Say no where a better replica is there: one that has not failed on this text, and not lately."""
    others = [other for other in workers if other is not worker and other.name != text.failed_on]
    if text.failed_on == worker.name:
        return not others
    now = time.monotonic()
    return worker.avoid_until <= now or all(other.avoid_until > now for other in others)


def fail(text: PendingText, error: Exception) -> None:
    """Give a text's asker the error; one that asks no more is left alone."""
    if not text.score.done():
        text.score.set_exception(error)
