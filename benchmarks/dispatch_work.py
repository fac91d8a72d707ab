"""The dispatch bench's batch of requests, the eight ways to dispatch it, and one run of it over given engines."""

import asyncio
import contextlib
import itertools
import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.dispatch import DispatchSettings
from actors.load import EngineLoad
from actors.pool import RolloutPool
from actors.streams import CompletionStream, StreamCall
from actors.tasks import WorkerRequest
from lwz_ray.records import RolloutRequest

TOKENS_PER_WORD = 1.4
SPREAD = 0.25
"""Standard deviation of the logarithm of a completion's length around what was asked for."""
NUM_PROMPT_TOKENS = 40
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Job:
    """One group: what it asks for, and how long its samples really become."""

    requested_words: int
    lengths: tuple[int, ...]
    """Tokens of each sample."""
    prompt_token_ids: tuple[int, ...]


def make_jobs(num_groups: int, group_size: int, words: tuple[int, int], most_tokens: int, seed: int) -> list[Job]:
    """Return groups in random order; requested words are log-uniform between the two of `words`."""
    rng = np.random.default_rng(seed)
    jobs = []
    for _ in range(num_groups):
        asked = round(math.exp(rng.uniform(math.log(words[0]), math.log(words[1]))))
        written = asked * TOKENS_PER_WORD * np.exp(rng.normal(0.0, SPREAD, group_size))
        lengths = tuple(int(n) for n in np.clip(np.rint(written), 1, most_tokens))
        jobs.append(Job(asked, lengths, tuple(rng.integers(1000, 40000, NUM_PROMPT_TOKENS).tolist())))
    return jobs


def lengths_of(jobs: Sequence[Job]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return how an engine knows what it was asked for: each prompt's lengths, by sample index."""
    return {job.prompt_token_ids: job.lengths for job in jobs}


def variants(max_num_seqs: int, cache_target: float) -> dict[str, DispatchSettings]:
    """Return every combination of the three choices by name; the first is what they are compared with."""
    found = {}
    pairs: list[tuple[tuple[Any, str], ...]] = [
        (("first_come", "first come"), ("longest_first", "longest first")),
        (("round_robin", "round robin"), ("most_free_cache", "free cache")),
        (("fixed", "fixed"), ("cache", "cache")),
    ]
    for order, routing, concurrency in itertools.product(*pairs):
        settings = DispatchSettings(order[0], routing[0], concurrency[0], cache_target, max_num_seqs)
        found[", ".join((order[1], routing[1], concurrency[1]))] = settings
    return found


@dataclass(slots=True)
class BenchEngine:
    """An engine of the bench, real or simulated."""

    call: StreamCall
    load: Callable[[], Awaitable[EngineLoad]]


async def run_batch(
    jobs: Sequence[Job], engines: Mapping[str, BenchEngine], settings: DispatchSettings, heartbeat_s: float
) -> dict[str, float]:
    """Ask for all groups at once; return seconds (of the event loop's clock) and preemptions.

    idle_s: from when the first engine ran dry for good to the end. group_s: mean time until a group was complete.
    """
    loop = asyncio.get_running_loop()
    pool = RolloutPool(TIMEOUT_S, settings)
    before = 0
    ended: dict[str, float] = {}

    def counting(name: str, call: StreamCall) -> StreamCall:
        async def stream(request: WorkerRequest, timeout_s: float) -> CompletionStream:
            async with contextlib.aclosing(call(request, timeout_s)) as items:
                async for item in items:
                    ended[name] = loop.time()
                    yield item

        return stream

    for name, engine in engines.items():
        load = await engine.load()
        before += load.num_preemptions
        pool.add_worker(name, counting(name, engine.call))
        pool.observe(name, load)

    async def beat() -> None:
        while True:
            await asyncio.sleep(heartbeat_s)
            for name, engine in engines.items():
                pool.observe(name, await engine.load())

    async def group(number: int, job: Job) -> float:
        request = RolloutRequest(
            job.prompt_token_ids, len(job.lengths), 1000 * number, requested_words=job.requested_words
        )
        async for _ in pool.stream(request):
            pass
        return loop.time()

    started, beats = loop.time(), asyncio.create_task(beat())
    ends = await asyncio.gather(*(group(i, job) for i, job in enumerate(jobs)))
    beats.cancel()
    await asyncio.gather(beats, return_exceptions=True)
    await pool.close()
    after = sum([(await engine.load()).num_preemptions for engine in engines.values()])
    return {
        "makespan_s": max(ends) - started,
        "idle_s": max(ends) - min(ended.values()),
        "group_s": statistics.mean(ends) - started,
        "preemptions": float(after - before),
    }
