"""What can be refused before a model is loaded or Ray started: only files and JSON are read here."""

import json
import os
from pathlib import Path
from typing import Any

from launch.deepspeed_file import read_deepspeed_file
from launch.preflight_disk import check_disk, check_staging
from launch.run_folder import holds_a_run, run_path
from launch.shapes import num_labels
from lwz_ray.config import Config
from lwz_ray.data import load_eval_prompts, load_prompts
from lwz_ray.errors import UserError
from lwz_ray.records import Prompt
from lwz_ray.sources import HUB, local_file
from rewards.embedder import check_embedder
from rewards.function import check_function
from rewards.judge_client import check_judge_settings

_HUB_TIMEOUT_S = 10.0


def preflight(config: Config) -> None:
    """Raise UserError on the first thing that would stop the run later.

    With `dry_run` a hub name stands for a model that is not here yet; it is not looked up. Stages that only read a
    run folder need a safe name and no more.
    """
    if config.stage in ("report", "scale"):
        run_path(config.run)
        return
    _check_run_folder(config)
    read_deepspeed_file(config)
    from launch.preflight_sequence import check_long_samples

    if config.stage == "train_rm":
        from launch.preflight_rm import check_train_rm

        check_train_rm(config)
        check_long_samples(config)
        if not config.dry_run:
            check_disk(config)
        return
    if config.stage == "curate":
        from launch.preflight_curate import check_curate

        check_curate(config)
        return
    check_address(config)
    check_policy(config)
    check_long_samples(config)
    from launch.preflight_algorithm import check_critic

    check_critic(config)
    if config.lora.rank:
        from launch.preflight_lora import check_lora_targets

        check_lora_targets(config)
    _check_writing_model(config)
    _check_other_scorers(config)
    _check_data(config)
    if not config.dry_run:
        check_staging(config)
        check_disk(config)


def _check_run_folder(config: Config) -> None:
    path = run_path(config.run)
    if config.run.resume == "never" and holds_a_run(path):
        raise UserError(f"{path} already holds a run: choose another run.name, or continue it with run.resume=auto")


def check_address(config: Config) -> None:
    if config.cluster.address.startswith(("http://", "https://")):
        raise UserError(
            f"cluster.address={config.cluster.address!r} is a dashboard's address (from RAY_ADDRESS?): give local, "
            "auto or host:port, or hand the run to that dashboard with ray job submit"
        )


def check_policy(config: Config) -> None:
    key, path = "model.path", config.model.path
    folder = model_folder(key, path, config.dry_run)
    if folder is None:
        return
    found = read_config(key, path, folder)
    check_positions(key, path, found, "model.max_length_tokens", config.model.max_length_tokens)
    if _is_hub_name(path):
        return
    check_tokenizer(key, folder)
    check_weights(key, folder)
    if config.template.chat and not _has_chat_template(folder):
        raise UserError(
            f"{key}={path!r}: its tokenizer has no chat template, which template.chat=true needs; use "
            "template.chat=false (a base model) or add chat_template.jinja to the folder"
        )


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
    if not _is_hub_name(writing.path):
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


def _is_hub_name(path: str) -> bool:
    """Tell a hub name from a folder: composing made every folder absolute."""
    return not Path(path).is_absolute()


def model_folder(key: str, path: str, dry_run: bool) -> Path | None:
    """Return the folder that holds config.json; None for a hub name of which nothing is known without asking."""
    if _is_hub_name(path):
        return None if dry_run else _fetch_config(key, path)
    folder = Path(path)
    if not folder.is_dir():
        remedy = "`make setup` writes those under models/"
        if key == "rewards.writing.path":
            remedy = "stage=train_rm, such as run=rm_demo, writes one as export/"
        raise UserError(f"{key}={path!r}: no such folder; name a Hugging Face folder ({remedy}) or hub:owner/name")
    return folder


def _fetch_config(key: str, name: str) -> Path:
    """Return the cached folder of a hub model's config.json, fetched where the hub may be asked."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json", etag_timeout=_HUB_TIMEOUT_S)).parent
    except Exception as error:  # offline, no such model, no access, no network: each its own kind
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"{key}=hub:{name}: neither in the local cache nor to be had from the hub{offline}: "
            f"{type(error).__name__}; download it first and name the folder"
        ) from error


def read_config(key: str, path: str, folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{key}={path!r}: has no config.json; name a folder that save_pretrained wrote")
    return _read_json(key, file)


def _read_json(key: str, file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {file} is no JSON file ({error}); restore it") from error


def check_positions(key: str, path: str, found: dict[str, Any], length_key: str, length: int) -> None:
    positions = found.get("max_position_embeddings")
    if positions is not None and length > positions:
        raise UserError(f"{length_key}={length} exceeds the {positions} positions of {key}={path!r}: lower it")


def check_tokenizer(key: str, folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{key}={str(folder)!r}: has no tokenizer (tokenizer.json); save the tokenizer there too")


def check_weights(key: str, folder: Path) -> None:
    """Ask for safetensors: other formats are pickles, which run code when they are read."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(_read_json(key, index)["weight_map"].values())
        missing = sorted(s for s in shards if not (folder / s).is_file())
        if missing:
            raise UserError(
                f"{key}={str(folder)!r}: {len(missing)} of {len(shards)} weight files are missing: {missing[0]}"
            )
    elif not (folder / "model.safetensors").is_file():
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
        found = f"only {pickles[0]}, a pickle that can run code when read" if pickles else "no weights"
        raise UserError(f"{key}={str(folder)!r}: holds {found}; save the weights as model.safetensors")


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(_read_json("model.path", settings).get("chat_template"))


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
