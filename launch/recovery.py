"""Attempts within one job: when the learners are lost, start them anew and go back to the newest checkpoint.

    attempt ──LearnerLostError──▶ count ──▶ kill · give up the save under way ──▶ start ──▶ open attempt + 1 ──▶ attempt
                                    └─ over failures.max_learner_restarts: BudgetExceededError

Every attempt begins in the same way, whether a driver or the learners were lost before it: load a checkpoint, mark what
it supersedes, publish its weights to every engine, and only then make groups.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from launch.checkpoints import CheckpointStore
from launch.learning import LearningSide
from launch.run_folder import RunFolder
from lwz_ray.errors import LearnerLostError
from lwz_ray.failures import FailureLog

Attempt = Callable[[Path | None], Awaitable[None]]
"""Goes on from a checkpoint, or from the beginning where there is none, to the end of the stage."""


class Recovery:
    """Runs a stage's attempts."""

    def __init__(
        self,
        learning: LearningSide,
        restart: Callable[[], Awaitable[None]],
        folder: RunFolder,
        store: CheckpointStore,
        failures: FailureLog,
        say: Callable[[str], None],
    ) -> None:
        """restart: replaces the learners, which were killed before; raises LearnerLostError where they do not come."""
        self._learning, self._restart = learning, restart
        self._folder, self._store, self._failures, self._say = folder, store, failures, say

    async def run(self, attempt: Attempt, newest: Path | None, stop: asyncio.Event) -> None:
        """Return when an attempt came to its end, or when the learners were lost after a stop was asked for.

        Raises BudgetExceededError after too many restarts, and whatever else ends an attempt.
        """
        lost: LearnerLostError | None = None
        while True:
            try:
                if lost is not None:
                    newest = await self._go_back(lost)
                await self._learning.guard(attempt(newest))
                return
            except LearnerLostError as error:
                lost = error
            self._failures.record("learner_restart", str(lost))
            if stop.is_set():
                self._say(f"{lost}; the run was to end anyway: {self._newest_text()}")
                return
            self._failures.check()

    async def _go_back(self, lost: LearnerLostError) -> Path | None:
        """Replace the learners; return the checkpoint that they are to load."""
        await self._learning.kill()
        await self._store.abandon()
        newest = self._store.newest()
        self._say(f"{lost}; starting the learners again, from {'the beginning' if newest is None else newest.name}")
        await self._restart()
        self._folder.next_attempt(str(lost))
        return newest

    def _newest_text(self) -> str:
        newest = self._store.newest()
        return "there is no checkpoint" if newest is None else f"{newest.name} is its newest checkpoint"
