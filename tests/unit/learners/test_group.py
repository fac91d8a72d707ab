"""The learner group's waits, over ranks that answer, fail or hang."""

import asyncio
from typing import Any

import pytest

from learners.group import LearnerGroup
from lwz_ray.errors import LearnerLostError


class Rank:
    """Finishes a save when it is let to."""

    def __init__(self, answer: Any = None, *, hangs: bool = False) -> None:
        self._answer, self._hangs = answer, hangs
        self.stopped = False

    async def finish_save(self) -> Any:
        try:
            if self._hangs:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped = True
            raise
        if isinstance(self._answer, Exception):
            raise self._answer


def finish(*ranks: Any) -> None:
    asyncio.run(LearnerGroup(ranks, 64, 0.05, name="critic").finish_save())


def test_a_rank_that_does_not_answer_is_a_loss():
    ranks = [Rank(), Rank(hangs=True), Rank(hangs=True)]
    with pytest.raises(
        LearnerLostError, match=r"waited 0\.05 s for the last checkpoint to be on disk on critic ranks \[1, 2\]"
    ):
        finish(*ranks)
    assert [r.stopped for r in ranks] == [False, True, True]


def test_one_that_fails_is_not_waited_for_with_the_others():
    other = Rank(hangs=True)
    with pytest.raises(OSError, match="the cable was cut"):
        finish(other, Rank(OSError("the cable was cut")))
    assert other.stopped
