"""Do the rollout engines serve the learner's weights? Asked by logprobs: a version is a label and proves nothing.

Each engine continues one fixed prompt; the learner says how probable it finds the same tokens. With the same weights
the two agree up to their arithmetic. It holds for a moment in which nothing trains, after a `load`.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.exceptions import RayError

from actors.streams import StreamCall
from actors.tasks import SampleTask, WorkerRequest, attempt_seed
from launch.cluster import reason_of
from lwz_ray.errors import InfrastructureError
from lwz_ray.protocols import Learner
from lwz_ray.records import Completion, TrainSample

SEED = 17
APART = 4.0
"""An engine this many times as far from the learner as the nearest one serves other weights than that one."""
ARITHMETIC_NATS = 1e-3
"""Mean distances below this are rounding, whatever their ratio."""


async def probe(
    engines: Mapping[str, StreamCall],
    learner: Learner,
    prompt_token_ids: Sequence[int],
    tolerance: float,
    timeout_s: float,
    *,
    num_samples: int = 4,
    max_tokens: int = 32,
) -> dict[str, Any]:
    """Return how far each engine's log-probabilities are from the learner's, in nats a token.

    {"tolerance": …, "engines": {name: {"mean": …, "max": …, "num_tokens": …} or {"error": …}}, "off": [name, …]}

    off: engines whose mean is above `tolerance` or far above the nearest engine's, and those that did not answer.
    tolerance: nats, such as `algorithm.mismatch_warning`. timeout_s: for an engine. All use the same seeds, so engines
    with the same weights write, up to arithmetic, the same. Raises what the learner raises.
    """
    tasks = tuple(SampleTask(i, attempt_seed(SEED, i, 0)) for i in range(num_samples))
    request = WorkerRequest(tuple(prompt_token_ids), tasks, max_tokens=max_tokens)
    told = await asyncio.gather(*(_continue(call, request, timeout_s) for call in engines.values()))
    written = {name: found for name, found in zip(engines, told, strict=True) if not isinstance(found, str)}
    samples = [(name, _sample(prompt_token_ids, completion)) for name, found in written.items() for completion in found]
    facts = await learner.annotate([sample for _, sample in samples]) if samples else []
    distances: dict[str, list[np.ndarray]] = {name: [] for name in written}
    for (name, sample), fact in zip(samples, facts, strict=True):
        assert fact.old_logprobs is not None
        distances[name].append(np.abs(fact.old_logprobs - sample.rollout_logprobs)[sample.loss_mask])
    result: dict[str, Any] = {}
    for name, found in zip(engines, told, strict=True):
        result[name] = {"error": found} if isinstance(found, str) else _summary(np.concatenate(distances[name]))
    return {"tolerance": tolerance, "engines": result, "off": _off(result, tolerance)}


def probe_warning(found: Mapping[str, Any]) -> str | None:
    """Return what to say of a probe where an engine is off, else None."""
    if not found["off"]:
        return None
    parts = []
    for name in found["off"]:
        seen = found["engines"][name]
        parts.append(f"{name} " + (seen["error"] if "error" in seen else f"{seen['mean']:.3g} nats a token"))
    return (
        f"{len(found['off'])} of {len(found['engines'])} rollout engines do not answer as the learner's weights would "
        f"(tolerance {found['tolerance']:g} nats): {', '.join(parts)}"
    )


async def _continue(call: StreamCall, request: WorkerRequest, timeout_s: float) -> list[Completion] | str:
    """Return the completions of one engine, or why there are none."""
    try:
        async with contextlib.aclosing(call(request, timeout_s)) as stream:
            found = [completion async for _, completion in stream if completion.num_tokens]
    except (InfrastructureError, RayError, OSError) as error:
        return reason_of(error)
    return found or "wrote no tokens"


def _sample(prompt_token_ids: Sequence[int], completion: Completion) -> TrainSample:
    """Return a completion as the learner reads it; it is not trained on."""
    ids = np.asarray([*prompt_token_ids, *completion.token_ids], dtype=np.int32)
    mask = np.arange(len(ids)) >= len(prompt_token_ids)
    logprobs = np.zeros(len(ids), dtype=np.float32)
    logprobs[mask] = completion.rollout_logprobs
    return TrainSample(ids, len(prompt_token_ids), mask, logprobs, np.zeros(len(ids), dtype=np.float32), 0.0)


def _summary(distances: np.ndarray) -> dict[str, float]:
    return {"mean": float(distances.mean()), "max": float(distances.max()), "num_tokens": int(distances.size)}


def _off(found: Mapping[str, Mapping[str, Any]], tolerance: float) -> list[str]:
    means = {name: seen["mean"] for name, seen in found.items() if "error" not in seen}
    limit = tolerance
    if means:
        limit = min(tolerance, max(APART * min(means.values()), ARITHMETIC_NATS))
    return [name for name in found if name not in means or not means[name] <= limit]
