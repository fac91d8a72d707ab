"""Which group is next, which engine takes it, and how much an engine takes at once.

An engine's expected use is the peak of its KV cache over the time to come, if each of its samples grows to its expected
length and all grow at the same pace (the idea of the Past-Future scheduler, arXiv 2507.10150). With remaining lengths
r_1 >= r_2 >= … and present sizes s_i, the peak lies where a sample ends:

    peak = max over k of  s_1 + … + s_k + k * r_k

A sample is sent where this peak, with it and with COUNTED_GROWTH of each r_i, stays within the engine's budget. The
budget, a share of its cache, starts at `cache_target` and answers the engine's own signs, as TCP's window does
(additive increase, multiplicative decrease): times DECREASE after a heartbeat that shows preemptions, but once only
until something was sent under the new budget; plus INCREASE, up to `cache_target`, after a quiet heartbeat before which
the budget held something back. While the last heartbeat shows preemptions nothing new is sent. An engine without
samples always takes one, whatever is expected of it: nothing can wait for ever.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from actors.load import EngineLoad
from actors.pending import PendingGroup, PendingSample
from lwz_ray.config import Config

COUNTED_GROWTH = 0.6
"""Counting all growth avoids more preemptions but leaves cache empty while samples that were sent together are young.
Engines preempt the youngest sequence, which costs little: docs/dispatch.md has the measurements."""
DECREASE = 0.8
INCREASE = 0.02
MIN_BUDGET = 0.1
OVERDUE_GROWTH = 0.25
"""A sample beyond its expected length is expected to grow by this share of what it has."""
PACE_MEMORY = 0.5
"""Weight of the newest heartbeat in an engine's tokens a second and sequence."""


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """How groups are spread over engines."""

    order: Literal["longest_first", "first_come"] = "longest_first"
    routing: Literal["most_free_cache", "round_robin"] = "most_free_cache"
    concurrency: Literal["cache", "fixed"] = "cache"
    cache_target: float = 0.9
    max_num_seqs: int = 256
    """Of one engine; with concurrency=cache too, since more would only wait inside of it."""
    sample_deadline_s: float | None = None
    max_sample_attempts: int = 5
    max_tokens: int | None = None
    """Of a completion whose request names no limit; None: not known here."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """Read them from a config."""
        room = config.actors
        return cls(
            room.order, room.routing, room.concurrency, room.cache_target, room.max_num_seqs, room.sample_deadline_s,
            config.failures.max_sample_attempts, config.sampling.max_tokens,
        )  # fmt: skip


def order_key(group: PendingGroup, order: str) -> tuple[float, ...]:
    """Return what groups are sorted by.

    longest_first: earlier rounds, then groups that are begun, then the longest request, then the oldest.
    """
    if order == "first_come":
        return (group.arrival,)
    request = group.request
    return (request.round_index, not group.begun, -request.requested_words, group.arrival)


def expected_peak(footprints: Iterable[tuple[float, float]]) -> float:
    """Return the most tokens that samples hold together while they grow. footprints: (present size, still to come)."""
    peak = held = 0.0
    for num, (size, remaining) in enumerate(sorted(footprints, key=lambda f: -f[1]), start=1):
        held += size
        peak = max(peak, held + num * remaining)
    return peak


class EngineState:
    """One engine as dispatch sees it: what it holds, how fast it writes, and its budget."""

    def __init__(self, settings: DispatchSettings) -> None:
        self._settings = settings
        self.load: EngineLoad | None = None
        self._observed_at = 0.0
        self._pace = 0.0
        self._unexplained = 0.0
        self._overhead = 0.0
        """Tokens of cache that a sample takes beyond its own, such as the empty end of its last block."""
        self.budget = settings.cache_target
        """Share of the KV cache."""
        self._holds = False
        self._limited = False
        self._sent_under_budget = True

    def observe(self, load: EngineLoad, samples: Sequence[PendingSample], now: float) -> int:
        """Take a heartbeat's numbers; return the preemptions since the last one. samples: those on the engine."""
        last, elapsed = self.load, now - self._observed_at
        preemptions = load.num_preemptions - (last.num_preemptions if last else 0)
        generated = load.num_generated_tokens - (last.num_generated_tokens if last else 0)
        if last is not None and elapsed > 0 and load.num_running and generated > 0:
            pace = generated / elapsed / load.num_running
            self._pace = pace if not self._pace else self._pace + PACE_MEMORY * (pace - self._pace)
        self.load, self._observed_at = load, now
        self._overhead = self._unexplained = 0.0
        known = sum(size for size, _ in self._footprints(samples, now))
        beyond = max(load.cache_usage * load.cache_tokens - known, 0.0)
        if samples:
            self._overhead = beyond / len(samples)
        else:
            self._unexplained = beyond
        self._steer(preemptions, load)
        return preemptions

    def _steer(self, preemptions: int, load: EngineLoad) -> None:
        crowded = load.num_waiting > 0 and load.cache_usage >= self._settings.cache_target
        self._holds = preemptions > 0 or crowded
        if preemptions > 0 and self._sent_under_budget:
            self.budget = max(MIN_BUDGET, DECREASE * self.budget)
            self._sent_under_budget = False
        elif not self._holds and self._limited:
            self.budget = min(self._settings.cache_target, self.budget + INCREASE)
        self._limited = False

    def num_admitted(self, samples: Sequence[PendingSample], more: Sequence[PendingSample], now: float) -> int:
        """Return how many of `more`, in order, the engine takes beside its `samples`."""
        room = min(self._settings.max_num_seqs - len(samples), len(more))
        if room <= 0 or self._settings.concurrency == "fixed" or self.load is None or self.load.cache_tokens <= 0:
            return max(room, 0)
        least = 0 if samples else 1
        if self._holds:
            return least
        footprints = [(size, COUNTED_GROWTH * remaining) for size, remaining in self._footprints(samples, now)]
        limit = self.budget * self.load.cache_tokens - self._unexplained
        for number in range(room):
            size, remaining = footprint(more[number], len(more))
            footprints.append((size + self._overhead, COUNTED_GROWTH * remaining))
            if expected_peak(footprints) > limit:
                self._limited = True
                return max(number, least)
        return room

    def free_tokens(self, samples: Sequence[PendingSample], candidate: PendingSample, now: float) -> float:
        """Return the KV cache that its `samples` will leave free at their peak, below 0 where they will not fit.

        Until the engine has told the size of its cache, a sequence is taken to have room for one such candidate.
        """
        if self.load is None or self.load.cache_tokens <= 0:
            capacity = self._settings.max_num_seqs * sum(footprint(candidate, 1))
        else:
            capacity = float(self.load.cache_tokens)
        return capacity - expected_peak(self._footprints(samples, now)) - self._unexplained

    def sent(self) -> None:
        """Take note that something was sent under the present budget."""
        self._sent_under_budget = True

    def _footprints(self, samples: Sequence[PendingSample], now: float) -> list[tuple[float, float]]:
        found = [footprint(s, s.num_together, self._pace * (now - s.sent_at)) for s in samples]
        return [(size + self._overhead, remaining) for size, remaining in found]


def footprint(sample: PendingSample, num_together: int, written: float = 0.0) -> tuple[float, float]:
    """Return (tokens held, tokens expected to come). written: since it was sent, with `num_together` of its prompt."""
    tokens = min(sample.prior_tokens + written, sample.max_tokens)
    remaining = max(sample.expected_tokens - tokens, OVERDUE_GROWTH * tokens)
    return sample.num_prompt_tokens / num_together + tokens, min(remaining, sample.max_tokens - tokens)
