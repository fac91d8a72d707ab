"""What long samples can be refused for before a model is loaded: attention heads for the ranks, Liger's package."""

import importlib.util
import json

from launch.preflight import model_folder, read_config
from lwz_ray.config import Config
from lwz_ray.errors import UserError


def check_long_samples(config: Config) -> None:
    """Raise UserError where sequence parallelism or Liger's kernels cannot work with this model and installation.

    Nothing is said of a hub name whose config.json is not here (`dry_run`).
    """
    _check_heads("model.path", config.model.path, config)
    if config.stage == "rl" and config.algorithm.uses_critic and config.critic.path is not None:
        _check_heads("critic.path", config.critic.path, config)
    if config.learners.liger and not config.dry_run and importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            "learners.liger=true: the package liger-kernel is not installed; install `lwz_ray[liger]`, or use "
            "learners.liger=false"
        )


def _check_heads(key: str, path: str, config: Config) -> None:
    shared = config.learners.sequence_parallel
    if shared == 1:
        return
    folder = model_folder(key, path, config.dry_run)
    if folder is None:
        return
    heads = read_config(key, path, folder).get("num_attention_heads")
    if not isinstance(heads, int):
        raise UserError(
            f"learners.sequence_parallel={shared} needs num_attention_heads in the config.json of {key}={path!r}, "
            f"which says {json.dumps(heads)}; use learners.sequence_parallel=1"
        )
    if heads % shared:
        fitting = [n for n in range(1, config.learners.ranks + 1) if config.learners.ranks % n == 0 and heads % n == 0]
        raise UserError(
            f"learners.sequence_parallel={shared} must divide the {heads} attention heads of {key}={path!r}; with "
            f"learners.ranks={config.learners.ranks} use one of {', '.join(map(str, fitting))}"
        )
