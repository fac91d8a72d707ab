"""What the front door asks of each stage before it runs: the rooms it starts, its checks, and its part of the plan."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lwz_ray.config import Config

LEARNING = ("rl", "train_rm", "pretrain", "sft")
"""Stages that train, and so write checkpoints and an export."""
WRITING = ("rl", "curate", "generate", "evaluate")
"""Stages whose policy writes text."""
LOOKING = ("report", "scale")
"""Stages that only look into a run folder."""


def reads_policy(config: Config) -> bool:
    """Say whether `model.path` is read: an evaluation of texts that are there needs no model that writes."""
    return config.stage != "evaluate" or config.evaluate.texts_path is None


@dataclass(frozen=True, slots=True)
class StageParts:
    """A stage's parts by the name of their module, read when they are asked for."""

    rooms: tuple[str, ...]
    preflight: str
    """Module of `launch` with check(config), which raises UserError."""
    plan: str
    """Module of `launch` with batch(config) -> lines and estimates(config, shape) -> [Estimate]."""

    def check(self) -> Callable[[Any], None]:
        """Return what refuses a config before a model is loaded or Ray started."""
        return importlib.import_module(f"launch.{self.preflight}").check

    def batch(self) -> Callable[[Any], list[str]]:
        """Return what says in lines how much is done a step."""
        return importlib.import_module(f"launch.{self.plan}").batch

    def estimates(self) -> Callable[[Any, Any], list[Any]]:
        """Return what estimates the memory of the stage's processes."""
        return importlib.import_module(f"launch.{self.plan}").estimates


STAGES: dict[str, StageParts] = {
    "rl": StageParts(("actors", "rewards", "learners", "critic"), "preflight_rl", "plan_rl"),
    "train_rm": StageParts(("learners",), "preflight_rm", "plan_rm"),
    "pretrain": StageParts(("learners",), "preflight_corpus", "plan_corpus"),
    "sft": StageParts(("learners",), "preflight_sft", "plan_sft"),
    "curate": StageParts(("actors",), "preflight_curate", "plan_curate"),
    "generate": StageParts(("actors",), "preflight_generate", "plan_generate"),
    "evaluate": StageParts(("actors",), "preflight_evaluate", "plan_evaluate"),
    "pipeline": StageParts((), "preflight_pipeline", "plan_pipeline"),
}
