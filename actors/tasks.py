"""What one worker is asked for: some samples of one prompt, each begun or taken up where an engine left it."""

from dataclasses import dataclass

import numpy as np

from lwz_ray.records import Completion


@dataclass(frozen=True, slots=True, eq=False)
class SampleTask:
    """One sample. With a `prior` the engine goes on from its tokens, and returns the whole."""

    sample_index: int
    seed: int
    """Of this attempt, see `attempt_seed`."""
    attempt: int = 0
    prior: Completion | None = None
    remaining_s: float | None = None
    """Until the sample's deadline, from when the worker hears of it; then it ends with finish reason `abort`."""


@dataclass(frozen=True, slots=True, eq=False)
class WorkerRequest:
    """Samples of one prompt for one engine; they share the prompt through its prefix cache."""

    prompt_token_ids: tuple[int, ...]
    tasks: tuple[SampleTask, ...]
    temperature: float | None = None
    """None: the engine's setting."""
    max_tokens: int | None = None
    """Of a whole completion, the prior's tokens included; None: the engine's setting."""
    top_p: float | None = None
    """None: the engine's setting."""
    json_schema: str | None = None
    """As in `RolloutRequest`; no prior is gone on from with it."""
    piece_tokens: int | None = None
    """Someone reads along, see `Engine.pieces`: tokens between two pieces of text; None: nobody does."""


def attempt_seed(group_seed: int, sample_index: int, attempt: int) -> int:
    """Return the seed of one attempt at a sample; a first attempt depends on group and index alone.

    A later attempt must not draw the same numbers again: they would choose the first tokens of what follows.
    """
    if attempt == 0:
        return group_seed + sample_index
    return int(np.random.SeedSequence([group_seed, sample_index, attempt]).generate_state(1)[0] & 0x7FFFFFFF)
