"""New weights on their way to the engines: staged while the learner rests, loaded while it goes on.

trained ──▶ stage ──▶ load, as a task ──▶ every engine serves the version: on_loaded
                         ▲
                         └── settled: the next stage, an evaluation and the end of the run wait here
"""

import asyncio
import time
from collections.abc import Callable

from lwz_ray.protocols import WeightSync


class WeightUpdates:
    """At most one load is under way."""

    def __init__(
        self, sync: WeightSync, on_loaded: Callable[[int], None], on_failed: Callable[[Exception], None]
    ) -> None:
        """on_loaded(policy_version): every engine serves it. on_failed: a load failed; who waits must hear of it."""
        self._sync, self._on_loaded, self._on_failed = sync, on_loaded, on_failed
        self._load: asyncio.Task[None] | None = None
        self._waited_s = 0.0
        self._ended: list[dict[str, float]] = []

    async def begin(self, policy_version: int) -> None:
        """Stage the learner's weights and begin to load them; the learner may train again when this returns.

        What was staged before is loaded: `settled` has returned.
        """
        staged = await self._sync.stage(policy_version)
        self._load = asyncio.create_task(self._run(policy_version, staged), name=f"load version {policy_version}")

    async def _run(self, policy_version: int, staged: dict[str, float]) -> None:
        try:
            self._ended.append({**staged, **await self._sync.load(policy_version)})
            self._on_loaded(policy_version)
        except Exception as error:
            self._on_failed(error)
            raise

    async def settled(self) -> None:
        """Wait for the load under way, if there is one; raise what went wrong with it."""
        if self._load is None:
            return
        started = time.monotonic()
        await self._load
        self._load = None
        self._waited_s += time.monotonic() - started

    def metrics(self, step_s: float) -> dict[str, float]:
        """Return `weights/what` of the loads that ended since the last call. step_s: seconds since then."""
        out = {"weights/wait_s": self._waited_s}
        for numbers in self._ended:
            out |= numbers
        pauses = [numbers["weights/pause_s"] for numbers in self._ended if "weights/pause_s" in numbers]
        if pauses:
            out["weights/stall_share"] = sum(pauses) / step_s
        self._waited_s, self._ended = 0.0, []
        return out

    async def cancel(self) -> None:
        """Stop the load under way and forget what was measured."""
        if self._load is not None:
            self._load.cancel()
            await asyncio.gather(self._load, return_exceptions=True)
        self._load, self._waited_s, self._ended = None, 0.0, []
