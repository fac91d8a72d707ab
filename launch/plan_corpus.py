"""The plan of `stage=pretrain`: what a step takes, how often each source comes round, and a learner's memory."""

import math

from launch.memory import Estimate
from launch.memory_learner import learner_estimate
from launch.preflight_corpus import document_paths, is_absent
from launch.shapes import ModelShape
from lwz_ray.config import Config
from lwz_ray.corpus import budget, shares, split_documents, trained_tokens
from lwz_ray.sources import HUB


def estimates(config: Config, shape: ModelShape) -> list[Estimate]:
    """Return the memory of the stage's only processes."""
    return [learner_estimate(config, shape)]


def batch(config: Config) -> list[str]:
    """Return the lines about sequences, steps, tokens and sources."""
    length, size = config.model.max_length_tokens, config.corpus.sequences_per_step
    steps = budget(config).planned_steps(size * length)
    return [
        "batch",
        f"  {size} corpus.sequences_per_step x {length:,} tokens = {size * length:,} a step; documents in one sequence "
        "do not see each other",
        f"  {steps:,} steps x {size * length:,} = {steps * size * length:,} tokens{limit_text(config)}",
        *rows_lines(config, size * length),
        *_sources(config),
    ]


def limit_text(config: Config) -> str:
    """Return what ends the run, where it is the token budget."""
    key = "corpus" if config.stage == "pretrain" else "sft"
    limit = config.corpus.max_tokens if config.stage == "pretrain" else config.sft.max_tokens
    return "" if limit is None else f" (steps={config.steps:,}, {key}.max_tokens={limit:,}: whichever comes first)"


def rows_lines(config: Config, tokens: int) -> list[str]:
    """Return how a step's tokens become packed rows."""
    learners = config.learners
    rows = math.ceil(tokens / learners.microbatch_tokens)
    per_rank = rows * learners.sequence_parallel / learners.ranks
    return [
        f"  at that length at least {rows} microbatches of {learners.microbatch_tokens:,} tokens, {per_rank:.1f} a rank"
    ]


def _sources(config: Config) -> list[str]:
    """Return each source's share, and its documents where they are here to be counted."""
    tokens = trained_tokens(config)
    lines = [f"  {name}: {share:.3%}, {share * tokens:,.0f} tokens" for name, share in shares(config).items()]
    paths = document_paths(config)
    absent = [path for path in paths if path.startswith(HUB) or is_absent(path)]
    if absent:
        return [*lines, f"  documents: not counted, {absent[0]} is not here yet"]
    train, held_out = split_documents(config)
    counted = {name: f"{i.num_documents:,} documents of {i.num_chars:,} characters" for name, i in train.items()}
    aside = sum(index.num_documents for index in held_out.values())
    return [
        *(f"{line}, from {counted[name]}" for line, name in zip(lines, counted, strict=True)),
        f"  {aside:,} documents are held out for perplexity",
    ]
