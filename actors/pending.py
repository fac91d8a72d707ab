"""What the rollout pool keeps of groups and samples that are not finished."""

import asyncio
from dataclasses import dataclass, field

from actors.tasks import SampleTask, WorkerRequest, attempt_seed
from lwz_ray.records import Completion, RolloutRequest

FRUITLESS_WAIT_S = 0.05
"""A sample that an engine gave back without a new token waits this long, twice as long each further time,"""
MAX_FRUITLESS_WAIT_S = 5.0
"""up to this."""
DEADLINE_SLACK_S = 0.01
"""A sample that comes back this close to its deadline has met it."""


@dataclass(slots=True, eq=False)
class PendingSample:
    """One sample on its way."""

    index: int
    num_prompt_tokens: int
    max_tokens: float
    """Of the whole completion; infinite where not known."""
    expected_tokens: float = 0.0
    """Of the whole completion."""
    num_together: int = 1
    """Samples that were sent with it: they hold the prompt once."""
    prior: Completion | None = None
    dispatches: int = 0
    losses: list[str] = field(default_factory=list)
    """Why each engine that was lost with it was lost."""
    not_before: float = 0.0
    fruitless: int = 0
    """Times in a row that it came back without a new token."""
    begun_at: float | None = None
    """When what is kept of it was begun; a sample of which nothing is left begins anew, its deadline too."""
    first_sent_at: float | None = None
    sent_at: float = 0.0

    @property
    def prior_tokens(self) -> int:
        return 0 if self.prior is None else self.prior.num_tokens

    def deadline(self, sample_deadline_s: float | None) -> float | None:
        """Return when it is cut, on the loop's clock; None: not at all, or not begun."""
        return None if sample_deadline_s is None or self.begun_at is None else self.begun_at + sample_deadline_s

    def keep(self, completion: Completion, now: float) -> None:
        """Keep the tokens of a completion that was interrupted, to go on from them."""
        if completion.num_tokens > self.prior_tokens:
            self.prior, self.fruitless = completion, 0
            return
        wait_s = min(FRUITLESS_WAIT_S * 2**self.fruitless, MAX_FRUITLESS_WAIT_S)
        self.fruitless, self.not_before = self.fruitless + 1, now + wait_s
        self.begun_at = None if self.prior is None else self.begun_at

    def lose(self, reason: str | None) -> None:
        """Take note that its engine is gone with what it wrote since it was sent. None: nobody's fault, not counted."""
        if reason is not None:
            self.losses.append(reason)
        if self.prior is None:
            self.begun_at = None


@dataclass(slots=True, eq=False)
class PendingGroup:
    """One request: its samples wait here or are with an engine, and come out through `results`."""

    request: RolloutRequest
    arrival: int
    asked_at: float
    deadline: float
    waiting: list[PendingSample]
    """Not with any engine, by index."""
    begun: bool = False
    """One of its samples was sent."""
    engine: str | None = None
    """Whose turn it is, with round-robin routing."""
    sendings: "set[Sending]" = field(default_factory=set)
    results: asyncio.Queue[tuple[int, Completion] | Exception] = field(default_factory=asyncio.Queue)
    num_missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_missing = len(self.waiting)

    def ready(self, now: float) -> list[PendingSample]:
        """Return the samples that may be sent now."""
        return [s for s in self.waiting if s.not_before <= now]

    def put_back(self, sample: PendingSample) -> None:
        """Let a sample wait for an engine again."""
        self.waiting.append(sample)
        self.waiting.sort(key=lambda s: s.index)


@dataclass(slots=True, eq=False)
class Sending:
    """Samples of one group that one engine was asked for at once."""

    engine: str
    group: PendingGroup
    samples: dict[int, PendingSample]
    """Those that have not come back, by index."""
    task: "asyncio.Task[None] | None" = None
    cancelled: bool = False

    def take(self) -> list[PendingSample]:
        """Take every sample out: what the engine still sends is not wanted any more."""
        samples = list(self.samples.values())
        self.samples.clear()
        return samples

    def cancel(self) -> None:
        """Close its stream."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()


def worker_request(
    group: PendingGroup, samples: list[PendingSample], now: float, sample_deadline_s: float | None
) -> WorkerRequest:
    """Return what an engine is asked for; counts as a dispatch of each sample.

    Every dispatch draws with a seed of its own, so that a sample that goes on does not repeat the numbers that chose
    its first tokens.
    """
    request, tasks = group.request, []
    for sample in samples:
        seed = attempt_seed(request.seed, sample.index, sample.dispatches)
        if sample.begun_at is None:
            sample.begun_at = now
        deadline = sample.deadline(sample_deadline_s)
        remaining_s = None if deadline is None else max(deadline - now, 0.0)
        tasks.append(SampleTask(sample.index, seed, sample.dispatches, sample.prior, remaining_s))
        sample.dispatches += 1
        sample.sent_at = now
        sample.first_sent_at = now if sample.first_sent_at is None else sample.first_sent_at
        sample.num_together = len(samples)
    return WorkerRequest(
        tuple(request.prompt_token_ids),
        tuple(tasks),
        request.temperature,
        request.max_tokens,
        request.top_p,
        request.json_schema,
    )
