"""What `stage=train_rm` can be refused for before a model is loaded or Ray started."""

from pathlib import Path
from typing import Any

from launch import preflight
from launch.preflight_disk import check_disk
from launch.preflight_sequence import check_long_samples
from launch.shapes import num_labels
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.preference_data import PairSource, load_pairs, split_pairs
from lwz_ray.sources import HUB, local_file


def check(config: Config) -> None:
    """Raise UserError on the first thing that would stop the stage later.

    With `dry_run` a file of pairs that another stage has yet to write may be missing; one that is there is read.
    """
    preflight.check_address(config)
    _check_numbers(config)
    _check_model(config)
    _check_pairs(config)
    check_long_samples(config)
    if not config.dry_run:
        check_disk(config)


def _check_numbers(config: Config) -> None:
    longest, budget = config.model.max_length_tokens, config.learners.microbatch_tokens
    if 2 * longest > budget:
        raise UserError(
            f"learners.microbatch_tokens={budget} is below 2 x model.max_length_tokens={longest} = {2 * longest}: both "
            "texts of a pair go into one packed row; raise the first or lower the second"
        )
    warmup, schedule = config.optimizer.warmup_steps, config.preference.lr_schedule
    if schedule == "linear" and config.steps <= warmup:
        raise UserError(
            f"steps={config.steps} with optimizer.warmup_steps={warmup} and preference.lr_schedule=linear: the rate "
            "would never fall; raise steps, lower the warm-up, or use preference.lr_schedule=constant"
        )


def _check_model(config: Config) -> None:
    key, path = "model.path", config.model.path
    folder = preflight.model_folder(key, path, config.dry_run)
    if folder is None:
        return
    found = preflight.read_config(key, path, folder)
    check_architecture(key, path, found)
    preflight.check_positions(key, path, found, "model.max_length_tokens", config.model.max_length_tokens)
    if Path(path).is_absolute():
        preflight.check_tokenizer(key, folder)
        preflight.check_weights(key, folder)


def check_architecture(key: str, path: str, found: dict[str, Any]) -> None:
    """Raise UserError where a folder holds neither a causal language model nor a classifier of one label."""
    architecture = (found.get("architectures") or ["none"])[0]
    classifier = architecture.endswith("ForSequenceClassification")
    if not classifier and not architecture.endswith("ForCausalLM"):
        raise UserError(
            f"{key}={path!r}: {architecture} is no language model (…ForCausalLM) and no reward model "
            "(…ForSequenceClassification); name a folder of one of the two"
        )
    if classifier and num_labels(found) != 1:
        raise UserError(
            f"{key}={path!r}: {architecture} with {num_labels(found)} outputs (id2label); a reward model has one: name "
            "such a folder, or the language model to start from"
        )


def _check_pairs(config: Config) -> None:
    """Read local sources once without a tokenizer, so that a bad row is found before anything starts."""
    wanted = config.preference
    found = _read(config, "preference.path", wanted.path, wanted.split)
    if wanted.eval_path is None:
        if found is not None:
            split_pairs(wanted, config.seed, found, None)
        return
    held_out = _read(config, "preference.eval_path", wanted.eval_path, wanted.eval_split)
    if found is not None and held_out is not None:
        split_pairs(wanted, config.seed, found, held_out)


def _read(config: Config, key: str, path: str, split: str) -> PairSource | None:
    """Return the pairs of a source; None where it is not read yet (a hub data set, or a plan's missing file)."""
    if path.startswith(HUB):
        return None
    try:
        local_file(path)
    except UserError as error:
        if config.dry_run:
            return None
        raise UserError(
            f"{key}: {error}; stage=curate recipe=degradations makes pairs, or name a .jsonl or .parquet file, or "
            "hub:owner/name"
        ) from error
    return load_pairs(config.preference, path, split)
