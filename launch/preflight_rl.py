"""What `stage=rl` can be refused for before a model is loaded or Ray started."""

from launch.preflight import (
    check_address,
    check_policy,
    check_positions,
    check_tokenizer,
    check_weights,
    is_hub_name,
    model_folder,
    read_config,
)
from launch.preflight_algorithm import check_critic
from launch.preflight_disk import check_disk, check_staging
from launch.preflight_lora import check_lora_targets
from launch.preflight_sequence import check_long_samples
from launch.shapes import num_labels
from lwz_ray.config import Config
from lwz_ray.data import load_eval_prompts, load_prompts
from lwz_ray.errors import UserError
from lwz_ray.records import Prompt
from lwz_ray.sources import HUB, local_file
from rewards.embedder import check_embedder
from rewards.endpoint_settings import check_judge_settings
from rewards.function import check_function


def check(config: Config) -> None:
    """Raise UserError on the first thing that would stop the stage later."""
    check_address(config)
    check_policy(config)
    check_long_samples(config)
    check_critic(config)
    if config.lora.rank:
        check_lora_targets(config)
    _check_writing_model(config)
    _check_other_scorers(config)
    _check_data(config)
    if not config.dry_run:
        check_staging(config)
        check_disk(config)


def _check_writing_model(config: Config) -> None:
    key, writing = "rewards.writing.path", config.rewards.writing
    if writing.path is None:
        return
    folder = model_folder(key, writing.path, config.dry_run)
    if folder is None:
        return
    found = read_config(key, writing.path, folder)
    architecture = (found.get("architectures") or ["none"])[0]
    if not architecture.endswith("ForSequenceClassification") or num_labels(found) != 1:
        raise UserError(
            f"{key}={writing.path!r}: {architecture} with {num_labels(found)} outputs (id2label); a reward model is "
            "a …ForSequenceClassification with num_labels=1"
        )
    check_positions(key, writing.path, found, "rewards.writing.max_length_tokens", writing.max_length_tokens)
    if not is_hub_name(writing.path):
        check_tokenizer(key, folder)
        check_weights(key, folder)


def _check_other_scorers(config: Config) -> None:
    """Look for the embedding model's folder, the user's function and the judge's key."""
    if config.rewards.format.semantic == "embedding":
        check_embedder(config.rewards.format)
    if config.rewards.function.path is not None:
        check_function(config.rewards.function.path)
    if config.judge.base_url is not None:
        check_judge_settings(config.judge)


def _check_data(config: Config) -> None:
    """Read local sources once without a tokenizer, so that a bad row is found before anything starts."""
    for key, path in (("data.path", config.data.path), ("eval.path", config.eval.path)):
        if not path.startswith(HUB):
            try:
                local_file(path)
            except UserError as error:
                raise UserError(f"{key}: {error}; name a .jsonl or .parquet file, or hub:owner/name") from error

    def unmeasured(_: Prompt) -> int:
        return 0

    if not config.data.path.startswith(HUB):
        load_prompts(config.data, config.rewards.length.on_missing_range, unmeasured)
    if not config.eval.path.startswith(HUB):
        load_eval_prompts(config, unmeasured)
