"""What `stage=sft` can be refused for before a model is loaded or Ray started."""

from launch import preflight
from launch.preflight_corpus import check_language_model, check_resources, check_schedule, is_absent
from lwz_ray.chat_pairs import count_pairs
from lwz_ray.config import Config
from lwz_ray.sources import HUB


def check(config: Config) -> None:
    """Raise UserError on the first thing that would stop the stage later.

    With `dry_run` a file of pairs that another stage has yet to write may be missing; one that is there is read.
    """
    check_schedule(config, "sft.lr_schedule", config.sft.lr_schedule, config.steps)
    check_language_model(config)
    preflight.check_policy(config)  # a chat template, where the pairs are to be put into one
    for key, path in (("sft.path", config.sft.path), ("sft.eval_path", config.sft.eval_path)):
        if path is None:
            if key == "sft.eval_path":
                continue
        elif path.startswith(HUB) or (config.dry_run and is_absent(path)):
            continue
        count_pairs(config, key)
    check_resources(config)
