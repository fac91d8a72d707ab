"""Algorithm configs for tests: the presets of conf/, changed in place."""

from functools import cache
from typing import Any

import yaml

from launch.compose import CONF
from lwz_ray.config import AlgorithmConfig


@cache
def _preset(name: str) -> dict[str, Any]:
    said = yaml.safe_load((CONF / "algorithm" / f"{name}.yaml").read_text())
    below = [_preset(parent) for parent in said.pop("defaults", []) if parent != "_self_"]
    return {k: v for part in [*below, said] for k, v in part.items()}


def algorithm(name: str = "grpo", **changes: Any) -> AlgorithmConfig:
    """Return a preset of conf/algorithm with changes."""
    return AlgorithmConfig(**_preset(name) | changes)
