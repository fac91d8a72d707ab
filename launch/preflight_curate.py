"""What `stage=curate` can be refused for before a model is loaded or Ray started."""

import importlib

from launch import preflight
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.good_texts import split_prompts
from lwz_ray.sources import HUB, local_file

CHECKS = {
    "degradations": "launch.preflight_curate:check_degradations",
    "chat_logs": "launch.preflight_chat_logs:check",
    "distill_plans": "launch.stages.curate_plans:check",
}
"""Of each recipe, module and function that raises UserError."""


def check(config: Config) -> None:
    """Raise UserError on the first thing that would stop the recipe later."""
    assert config.recipe is not None  # the config's own check
    module, _, function = CHECKS[config.recipe].partition(":")
    getattr(importlib.import_module(module), function)(config)


def check_degradations(config: Config) -> None:
    """Raise UserError where the model, if it is needed, or a source of prompts or texts cannot be used."""
    from launch.stages.curate_degradations import needs_model, read_sources

    if needs_model(config):
        preflight.check_address(config)
        preflight.check_policy(config)
    texts = config.curate.texts_path
    key, path = ("curate.texts_path", texts) if texts is not None else ("data.path", config.data.path)
    if path.startswith(HUB):
        return
    try:
        local_file(path)
    except UserError as error:
        raise UserError(f"{key}: {error}; name a .jsonl or .parquet file, or hub:owner/name") from error
    sources, _ = read_sources(config, None)
    split_prompts([prompt.prompt_id for prompt, _ in sources], config.curate.held_out_share, config.seed)
