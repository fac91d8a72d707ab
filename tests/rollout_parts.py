"""What tests of rollouts share."""

import contextlib
from collections.abc import Sequence

from actors.streams import CompletionStream
from actors.tasks import SampleTask, WorkerRequest
from lwz_ray.records import Completion


def samples_of(
    prompt_token_ids: Sequence[int],
    num_samples: int,
    seed: int,
    temperature: float | None = None,
    max_tokens: int | None = None,
    priors: Sequence[Completion | None] | None = None,
    remaining_s: float | None = None,
) -> WorkerRequest:
    """Return a request for samples 0, 1, 2, … of one prompt, as the pool makes it; priors: one for each sample."""
    told = priors or [None] * num_samples
    tasks = (SampleTask(i, seed + i, prior=prior, remaining_s=remaining_s) for i, prior in enumerate(told))
    return WorkerRequest(tuple(prompt_token_ids), tuple(tasks), temperature, max_tokens)


async def collect(stream: CompletionStream) -> list[Completion]:
    """Read a stream to its end; return the completions by sample index, which must be 0, 1, 2, …."""
    async with contextlib.aclosing(stream):
        items = sorted([item async for item in stream], key=lambda item: item[0])
    assert [index for index, _ in items] == list(range(len(items)))
    return [completion for _, completion in items]
