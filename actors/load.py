"""What an engine says of itself when it is asked for a sign of life."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine's own numbers, read through its main loop: an engine that is frozen gives none."""

    policy_version: int
    num_running: int
    """Sequences being decoded."""
    num_waiting: int
    """Sequences that the engine has taken and not begun, or preempted."""
    cache_usage: float
    """Share of the KV cache in use, 0 to 1."""
    cache_tokens: int
    """What the KV cache holds, in tokens."""
    num_preemptions: int
    """For want of cache, since the engine started."""
    num_generated_tokens: int
    """Since the engine started."""


@dataclass(slots=True)
class EngineCounts:
    """What is kept of the reports that an engine sends with each of its steps."""

    num_running: int = 0
    cache_usage: float = 0.0
    num_preemptions: int = 0
    num_generated_tokens: int = 0
    num_cleared: int = 0
    """Sequences that were preempted because the cache was cleared, and that the engine has not reported yet."""

    def preempted(self, num: int) -> None:
        """Take a report of preemptions; those of a cleared cache say nothing about its size."""
        cleared = min(num, self.num_cleared)
        self.num_cleared -= cleared
        self.num_preemptions += num - cleared
