"""What the rollout pool counts, as `dispatch/what` and `rollout/what` numbers since they were last asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.dispatch import EngineState


@dataclass(slots=True)
class DispatchCounters:
    """Counts since the last `take`."""

    redispatched: int = 0
    taken_up: int = 0
    past_deadline: int = 0
    preemptions: int = 0
    waits_s: list[float] = field(default_factory=list)
    """From asking to the first dispatch, of each sample."""
    samples_s: list[float] = field(default_factory=list)
    """From the first dispatch to the end, of each sample."""

    def take(self, engines: Sequence[EngineState], num_waiting: int, num_open: int) -> dict[str, float]:
        """Return the numbers and begin anew. Means and maxima of nothing are left out."""
        found = {
            "dispatch/engines": float(len(engines)),
            "dispatch/queue": float(num_waiting),
            "dispatch/open": float(num_open),
            "dispatch/redispatched": float(self.redispatched),
            "dispatch/taken_up": float(self.taken_up),
            "dispatch/past_deadline": float(self.past_deadline),
            "dispatch/preemptions": float(self.preemptions),
        }
        if self.waits_s:
            found |= {"dispatch/wait_s": float(np.mean(self.waits_s)), "dispatch/wait_max_s": max(self.waits_s)}
        if self.samples_s:
            p50, p95 = np.percentile(self.samples_s, [50, 95])
            found |= {"rollout/sample_s_p50": float(p50), "rollout/sample_s_p95": float(p95)}
            found["rollout/sample_s_max"] = max(self.samples_s)
        loads = [engine.load for engine in engines if engine.load is not None]
        if loads:
            found["dispatch/cache_usage"] = float(np.mean([load.cache_usage for load in loads]))
            found["dispatch/cache_budget"] = float(np.mean([e.budget for e in engines if e.load is not None]))
        self.redispatched = self.taken_up = self.past_deadline = self.preemptions = 0
        self.waits_s, self.samples_s = [], []
        return found
