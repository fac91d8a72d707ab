"""Says on the console and in the run folder when a step goes past a limit of the watch, or `mismatch_warning`."""

from collections.abc import Mapping, Sequence
from typing import Any

from launch.run_folder import RunFolder
from lwz_ray.config import Config
from lwz_ray.records import Sample
from lwz_ray.watch import alarms


class WatchTracker:
    """Warns once for each limit, at the first step past it, and counts the others for the summary."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self._limits = config.watch
        self._active = config.rewards.active
        self._max_mismatch = config.algorithm.mismatch_warning
        self._folder = folder
        self.counts: dict[str, dict[str, float]] = {}
        """Metric key -> steps past its limit, first such step, the value furthest past it, and the limit."""

    def log_step(self, metrics: Mapping[str, Any]) -> None:
        """Look at one step."""
        for alarm in alarms(metrics, self._limits, self._active, self._max_mismatch):
            seen = self.counts.get(alarm.key)
            if seen is None:
                self._folder.warn("watch", f"step {metrics['step']}: {alarm.message}")
                seen = {"steps": 0.0, "first_step": metrics["step"], "worst": alarm.value, "limit": alarm.limit}
                self.counts[alarm.key] = seen
            seen["steps"] += 1
            if abs(alarm.value - alarm.limit) > abs(seen["worst"] - alarm.limit):
                seen["worst"] = alarm.value

    def log_samples(self, samples: Sequence[Sample], advantages: Sequence[float], step: int, split: str) -> None:
        """Do nothing: the step's numbers say it."""

    def close(self) -> None:
        """Do nothing: warnings are written as they come."""
