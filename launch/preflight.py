"""What can be refused before a model is loaded or Ray started: only files and JSON are read here."""

import json
import os
from pathlib import Path
from typing import Any

from launch.deepspeed_file import read_deepspeed_file
from launch.files import read_yaml
from launch.run_folder import holds_a_run, run_path
from launch.stage_table import LOOKING, STAGES
from lwz_ray.config import Config
from lwz_ray.errors import UserError

_HUB_TIMEOUT_S = 10.0
_WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of the names of architectures that write text."""


def preflight(config: Config) -> None:
    """Raise UserError on the first thing that would stop the run later.

    With `dry_run` a hub name stands for a model that is not here yet; it is not looked up. Stages that only read a
    run folder need a safe name and no more.
    """
    if config.stage in LOOKING:
        run_path(config.run)
        if config.dry_run:
            raise UserError(f"dry_run=true: stage={config.stage} starts nothing that could be planned; leave it out")
        return
    _check_run_folder(config)
    read_deepspeed_file(config)
    STAGES[config.stage].check()(config)


def _check_run_folder(config: Config) -> None:
    path = run_path(config.run)
    if holds_a_run(path):
        if config.run.resume == "never":
            raise UserError(f"{path} already holds a run: choose another run.name, or continue it with run.resume=auto")
        _check_same_stage(config, path)
    if not config.dry_run:
        _check_writable(config.run.dir, path)


def _check_same_stage(config: Config, path: Path) -> None:
    """Refuse to go on in the folder of another stage: its summary, texts and samples would be replaced."""
    file = path / "config.yaml"
    if not file.is_file():
        return
    earlier = read_yaml(file)
    for key, now in (("stage", config.stage), ("recipe", config.recipe)):
        if (key == "stage" or config.stage == "curate") and earlier.get(key, now) != now:
            raise UserError(f"{path} holds a run of {key}={earlier[key]}, not {key}={now}: choose another run.name")


def _check_writable(run_dir: str, path: Path) -> None:
    """Refuse a place where nothing can be written, before hours of reading data."""
    nearest = next(p for p in (path, *path.parents) if os.path.exists(p))
    if not nearest.is_dir():
        raise UserError(f"run.dir={run_dir}: {nearest} is a file, so there can be no {path}; name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"run.dir={run_dir}: {nearest} cannot be written by this user; name another folder")


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
    check_writes(key, path, found)
    check_positions(key, path, found, "model.max_length_tokens", config.model.max_length_tokens)
    if is_hub_name(path):
        return
    check_tokenizer(key, folder)
    check_weights(key, folder)
    if config.template.chat and not has_chat_template(folder):
        raise UserError(
            f"{key}={path!r}: its tokenizer has no chat template, which template.chat=true needs; use "
            "template.chat=false (a base model) or add chat_template.jinja to the folder"
        )


def is_hub_name(path: str) -> bool:
    """Tell a hub name from a folder: composing made every folder absolute."""
    return not Path(path).is_absolute()


def model_folder(key: str, path: str, dry_run: bool) -> Path | None:
    """Return the folder that holds config.json; None for a hub name of which nothing is known without asking."""
    if is_hub_name(path):
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
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {file} is no JSON file ({error}); restore it") from error
    if not isinstance(found, dict):
        raise UserError(f"{key}: {file} holds a {type(found).__name__} and no JSON object; restore it")
    return found


def check_writes(key: str, path: str, found: dict[str, Any]) -> None:
    """Refuse a model that writes no text, such as a reward model; an engine finds that out after it has started."""
    architecture = (found.get("architectures") or ["none"])[0]
    if not architecture.endswith(_WRITES):
        raise UserError(f"{key}={path!r}: {architecture} is no language model (…ForCausalLM); name a folder of one")


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


def has_chat_template(folder: Path) -> bool:
    """Say whether a model's folder says how a conversation is written."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(_read_json("model.path", settings).get("chat_template"))
