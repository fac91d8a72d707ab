"""`stage=curate`: data is made, by one of several recipes.

recipe            what goes in                  what comes out                     who reads it
degradations      prompts or good texts         preference pairs                   stage=train_rm
chat_logs         conversations                 writing requests with word ranges  stage=rl
distill_plans     the samples of a run          plans as documents                 stage=pretrain
"""

import importlib

from lwz_ray.config import Config

RECIPES = {
    "degradations": "launch.stages.curate_degradations",
    "chat_logs": "launch.stages.curate_chat_logs",
    "distill_plans": "launch.stages.curate_plans",
}
"""Modules with run(config) -> exit status."""


def run(config: Config) -> int:
    """Run the recipe of the config; return 0 when it completed, 130 when it was interrupted."""
    assert config.recipe is not None  # the config's own check
    return importlib.import_module(RECIPES[config.recipe]).run(config)
