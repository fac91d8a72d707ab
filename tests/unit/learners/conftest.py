"""What several tests of one learner rank share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from learners.fsdp import FsdpBackend
from learners.trainer import Trainer
from tests.learner_parts import meeting_address, settings


@pytest.fixture
def make_trainer(tiny_model_dir: Path) -> Iterator[Callable[..., Trainer]]:
    """Return a function that starts a group of one rank; a second call ends the first's group."""
    alive: list[Trainer] = []

    def make(**changes: Any) -> Trainer:
        while alive:
            alive.pop().close()
        wanted = settings(tiny_model_dir, **changes)
        alive.append(Trainer(wanted, FsdpBackend(wanted, 0, 1, meeting_address())))
        return alive[-1]

    yield make
    while alive:
        alive.pop().close()
