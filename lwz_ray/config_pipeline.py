"""Config of `stage=pipeline`: stages of the front door in a row, from one command."""

import re
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from lwz_ray.config_base import Node

SLOT = re.compile(r"\{([a-z][a-z0-9_]*)((?:\.[A-Za-z0-9_]+)*)\}")
"""`{name}`: the run folder of a stage; `{name.some.key}`: that value of its summary.json."""
EVERY = "all"
RESERVED = (EVERY, "request", "checkpoints", "control", "export", "lease", "stages", "wandb")
"""No names of stages: `{request}` is a slot of templates, the others are the run folder's own."""
OWN = ("stage", "run.dir", "run.name", "run.resume", "dry_run", "pipeline")
"""What a stage's further words may not set: the pipeline sets it."""
RUNNABLE = ("rl", "train_rm", "pretrain", "sft", "curate", "generate", "evaluate")


class PipelineStageConfig(Node):
    """One stage: words of the front door's command line, and what it needs."""

    words: list[str]
    """Such as [stage=rl, template=think]; `{name}` stands for the run folder of the stage with that name, and
    `{name.tokens.trained}` for a number of its summary."""
    needs: list[str] = Field(default_factory=list)
    """Stages that must have completed; those named in `{…}` count without being listed."""


class PipelineConfig(Node):
    """Stages by name, in the order in which they run; each gets a run folder below the pipeline's own."""

    command: list[str]
    """The words of this command line, with which those of every stage begin; set by the front door."""
    stages: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], PipelineStageConfig]
    words: dict[str, list[str]]
    """More words for a stage by its name, or for `all`; after the stage's own."""
    arms: dict[str, str]
    """What the parent report calls an arm -> the stage that evaluates it; the others are compared with the first."""

    def own_words(self, name: str) -> list[str]:
        """Return the words of a stage beside those of the command line, slots as written; the last of a key wins."""
        return [*self.stages[name].words, *self.words.get(EVERY, ()), *self.words.get(name, ())]

    def needs_of(self, name: str) -> tuple[str, ...]:
        """Return the stages that a stage needs, as they are first named."""
        slots = (found for word in self.own_words(name) for found in slots_of(word))
        return tuple(dict.fromkeys([*self.stages[name].needs, *slots]))

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        earlier: list[str] = []
        for name, stage in self.stages.items():
            where = f"pipeline.stages.{name}"
            if name in RESERVED:
                raise ValueError(f"{where}: this name has another meaning; call the stage something else")
            _check_stage_word(where, stage.words)
            for need in self.needs_of(name):
                if need not in earlier:
                    named = f"needs {need!r}, which is no stage before it"
                    raise ValueError(f"{where}: {named} (before it are: {', '.join(earlier) or 'none'})")
            earlier.append(name)
        return self

    @model_validator(mode="after")
    def _words_fit(self) -> Self:
        for name, words in self.words.items():
            if name not in (EVERY, *self.stages) and self.stages:
                raise ValueError(f"pipeline.words.{name}: no such stage; there are {', '.join(self.stages)} and all")
            for word in words:
                _check_free_word(f"pipeline.words.{name}", word)
        for arm, name in self.arms.items():
            if name not in self.stages:
                raise ValueError(f"pipeline.arms.{arm}={name!r}: no such stage; there are {', '.join(self.stages)}")
            if "stage=evaluate" not in self.stages[name].words:
                raise ValueError(f"pipeline.arms.{arm}={name!r}: that stage evaluates nothing; name a stage=evaluate")
        return self


def slots_of(word: str) -> Iterator[str]:
    """Yield the stages that a word names in `{…}`; `{request}` is a template's."""
    return (found[1] for found in SLOT.finditer(word) if found[1] != "request")


def _check_stage_word(where: str, words: list[str]) -> None:
    named = [word.partition("=")[2] for word in words if word.startswith("stage=")]
    if len(named) != 1 or named[0] not in RUNNABLE:
        said = ", ".join(f"stage={name}" for name in named) or "none"
        raise ValueError(f"{where}.words names {said}: one stage=… is needed, of {', '.join(RUNNABLE)}")
    for word in words:
        if not word.startswith("stage="):
            _check_free_word(f"{where}.words", word)


def _check_free_word(where: str, word: str) -> None:
    key = word.partition("=")[0].lstrip("+").strip()
    if key in OWN or key.startswith("pipeline."):
        raise ValueError(f"{where}: {word!r} sets {key}, which the pipeline itself sets for each stage; leave it out")
