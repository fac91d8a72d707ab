"""Trackers: each takes what a run measures to one place; a run has several behind one."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from launch.console import ConsoleTracker
from launch.run_folder import RunFolder
from launch.wandb_tracker import WandbTracker
from launch.watch_tracker import WatchTracker
from lwz_ray.config import Config
from lwz_ray.protocols import Tracker
from lwz_ray.records import Sample


class ClosableTracker(Tracker, Protocol):
    """A tracker that has something to finish."""

    def close(self) -> None: ...


class JsonlTracker:
    """Write to the run folder: the record that reports and tests read."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def log_step(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        self._folder.append_metrics(metrics)

    def log_samples(self, samples: Sequence[Sample], advantages: Sequence[float], step: int, split: str) -> None:
        """Append one line a sample to `samples.jsonl`."""
        self._folder.append_samples(samples, advantages, step, split)

    def close(self) -> None:
        """Do nothing: every line is already flushed."""


class MultiTracker:
    """Hand everything to several trackers, the run folder first: it must hold what the others show."""

    def __init__(self, trackers: Sequence[ClosableTracker], watch: WatchTracker | None = None) -> None:
        self._trackers = tuple(trackers)
        self.watch = watch

    def log_step(self, metrics: Mapping[str, Any]) -> None:
        """Hand one step's metrics to each tracker."""
        for tracker in self._trackers:
            tracker.log_step(dict(metrics))

    def log_samples(self, samples: Sequence[Sample], advantages: Sequence[float], step: int, split: str) -> None:
        """Hand samples to each tracker."""
        for tracker in self._trackers:
            tracker.log_samples(samples, advantages, step, split)

    def close(self) -> None:
        """Close each tracker, also after one fails; raises the first failure at the end."""
        first: Exception | None = None
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


def build_trackers(config: Config, folder: RunFolder, start_step: int = 0) -> MultiTracker:
    """Return the trackers that the config asks for; `start_step` is the step that a resumed run continues from."""
    trackers: list[ClosableTracker] = [JsonlTracker(folder)]
    watch = WatchTracker(config, folder)
    if config.tracking.wandb:
        trackers.append(WandbTracker(config, folder))
    if config.tracking.progress:
        trackers.append(ConsoleTracker(config.steps, start_step))
    trackers.append(watch)
    return MultiTracker(trackers, watch)
