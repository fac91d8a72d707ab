"""What both systems are timed on: the demo's model, prompts and settings, two groups of eight, 256 new tokens."""

from collections.abc import Sequence

from launch.compose import compose
from lwz_ray.config import Config
from lwz_ray.errors import UserError

PRESET = "run=demo_cpu"
WORDS = (
    "steps=5",
    "groups_per_step=2",
    "group_size=8",
    "sampling.max_tokens=256",
    "data.languages=[en]",
    # Length and format alone: what both systems compute in their own process.
    "rewards.weights.writing=0",
    "rewards.writing.path=null",
)
SHORT_WORDS = {"model": "model.path", "max_tokens": "sampling.max_tokens"}
WARM_UP_STEPS = 2
"""Left out in front. The first pays for allocation and threads; with `max_staleness=1` the second trains on groups
that were generated during the first. Left out of every system, so that all are timed on the same prompts."""
MIN_MEASURED_STEPS = 3


def bench_words(argv: Sequence[str]) -> list[str]:
    """Return the config words of the bench, those of a command line last, where they win.

    >>> bench_words(["model=models/tiny-random", "steps=6"])[-2:]
    ['model.path=models/tiny-random', 'steps=6']
    """
    given = []
    for word in argv:
        name, equals, value = word.partition("=")
        given.append(f"{SHORT_WORDS.get(name, name)}{equals}{value}")
    preset = [] if any(word.startswith("run=") for word in given) else [PRESET]
    return [*preset, *WORDS, *given]


def bench_config(argv: Sequence[str]) -> Config:
    """Return the config of a command line of the bench; `steps` counts the warm-up too.

    Raises UserError for every mistake in it, and for too few steps.
    """
    config = compose(bench_words(argv))
    least = WARM_UP_STEPS + MIN_MEASURED_STEPS
    if config.steps < least:
        raise UserError(
            f"steps={config.steps}: a median needs {MIN_MEASURED_STEPS} steps after {WARM_UP_STEPS} of warm-up, "
            f"use {least} or more"
        )
    return config
