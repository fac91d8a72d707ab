"""What `stage=pretrain` can be refused for before a model is loaded or Ray started."""

from pathlib import Path

from launch import preflight
from launch.preflight_disk import check_disk
from launch.preflight_lora import check_lora_targets
from launch.preflight_sequence import check_long_samples
from lwz_ray.config import Config
from lwz_ray.corpus import budget, split_documents
from lwz_ray.corpus_index import index_documents
from lwz_ray.errors import UserError
from lwz_ray.sources import HUB, PACKAGE


def check(config: Config) -> None:
    """Raise UserError on the first thing that would stop the stage later.

    With `dry_run` files that another stage has yet to write may be missing; those that are there are read.
    """
    if config.model.max_length_tokens < 2:
        raise UserError("model.max_length_tokens=1: a token to read and one to train do not fit; raise it")
    tokens = config.corpus.sequences_per_step * config.model.max_length_tokens
    check_schedule(config, "corpus.lr_schedule", config.corpus.lr_schedule, budget(config).planned_steps(tokens))
    check_language_model(config)
    _check_documents(config)
    check_resources(config)


def check_resources(config: Config) -> None:
    """Raise UserError for what ranks and machine cannot do."""
    preflight.check_address(config)
    check_long_samples(config)
    if config.lora.rank:
        check_lora_targets(config)
    if not config.dry_run:
        check_disk(config)


def check_schedule(config: Config, key: str, schedule: str, steps: int) -> None:
    """Raise UserError where a falling rate would never fall; steps: as many as are foreseen."""
    warmup = config.optimizer.warmup_steps
    if schedule != "constant" and steps <= warmup:
        raise UserError(
            f"{steps} steps with optimizer.warmup_steps={warmup} and {key}={schedule}: the rate would never fall; "
            f"raise steps or the token budget, lower the warm-up, or use {key}=constant"
        )


def check_language_model(config: Config) -> None:
    """Raise UserError where model.path is no folder of a causal language model with a tokenizer, and long enough."""
    key, path = "model.path", config.model.path
    folder = preflight.model_folder(key, path, config.dry_run)
    if folder is None:
        return
    found = preflight.read_config(key, path, folder)
    architecture = (found.get("architectures") or ["none"])[0]
    if not architecture.endswith("ForCausalLM"):
        raise UserError(f"{key}={path!r}: {architecture} is no language model (…ForCausalLM); name a folder of one")
    preflight.check_positions(key, path, found, "model.max_length_tokens", config.model.max_length_tokens)
    if not preflight.is_hub_name(path):
        preflight.check_tokenizer(key, folder)
        preflight.check_weights(key, folder)


def is_absent(path: str) -> bool:
    """Tell a local path that is not there from one that is, or that is looked for elsewhere."""
    return not path.startswith((HUB, PACKAGE)) and not Path(path).exists()


def document_paths(config: Config) -> list[str]:
    """Return the paths of every source, and of the held-out documents where they are named."""
    aside = [] if config.corpus.eval_path is None else [config.corpus.eval_path]
    return [source.path for source in config.corpus.sources.values()] + aside


def _check_documents(config: Config) -> None:
    """Walk through local sources once, without a tokenizer, so that a bad row is found before anything starts."""
    paths = document_paths(config)
    if config.dry_run and any(is_absent(path) for path in paths):
        return
    if not any(path.startswith(HUB) for path in paths):
        split_documents(config)
        return
    for name, source in config.corpus.sources.items():
        if not source.path.startswith(HUB):
            index_documents(f"corpus.sources.{name}", source, config.corpus.on_bad_row)
