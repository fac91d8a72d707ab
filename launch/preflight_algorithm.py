"""What the algorithm's parts can be refused for before a model is loaded or Ray started: the critic's folder."""

import json
from pathlib import Path
from typing import Any

from launch import preflight
from launch.preflight_rm import check_architecture
from lwz_ray.config import Config
from lwz_ray.errors import UserError

KEY = "critic.path"


def check_critic(config: Config) -> None:
    """Raise UserError where `critic.path` cannot value the policy's tokens; it is read with advantage=gae only."""
    path = config.critic.path
    if not config.algorithm.uses_critic or path is None:
        return
    folder = preflight.model_folder(KEY, path, config.dry_run)
    if folder is None:
        return
    found = preflight.read_config(KEY, path, folder)
    check_architecture(KEY, path, found)
    preflight.check_positions(KEY, path, found, "model.max_length_tokens", config.model.max_length_tokens)
    if Path(path).is_absolute():
        preflight.check_weights(KEY, folder)
    policy = preflight.model_folder("model.path", config.model.path, config.dry_run)
    if policy is not None:
        _check_vocabulary(config, found, folder, policy)


def _check_vocabulary(config: Config, found: dict[str, Any], folder: Path, policy: Path) -> None:
    """Compare embeddings and, where both folders have a tokenizer.json, what each token id stands for."""
    both = f"{KEY}={config.critic.path!r} and model.path={config.model.path!r}"
    here = found.get("vocab_size") or 0
    wanted = preflight.read_config("model.path", config.model.path, policy).get("vocab_size") or 0
    if here < wanted:
        raise UserError(
            f"{both}: the critic's vocab_size={here} is below the policy's {wanted}, and it reads the policy's tokens; "
            "use a model of the same family, or critic.path=null"
        )
    files = [folder / "tokenizer.json", policy / "tokenizer.json"]
    if not all(file.is_file() for file in files):
        return
    ours, theirs = (_tokens(file) for file in files)
    differing = sorted(token for token, number in theirs.items() if ours.get(token) != number)
    if differing:
        raise UserError(
            f"{both}: their tokenizers give other ids to {len(differing)} of {len(theirs)} tokens, such as "
            f"{differing[0]!r}; use a model of the same family, or critic.path=null"
        )


def _tokens(file: Path) -> dict[str, int]:
    """Return token -> id of a tokenizer.json, added tokens included."""
    raw = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = raw["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram models list [token, score] by id
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return vocabulary | {added["content"]: added["id"] for added in raw.get("added_tokens", [])}
