"""Models of the hub become local folders before anything starts."""

from pathlib import Path

from huggingface_hub import snapshot_download

from launch.stage_table import reads_policy
from lwz_ray.config import Config
from lwz_ray.errors import UserError

FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""Weights as safetensors only, and what a tokenizer needs; no code."""


def with_local_models(config: Config) -> Config:
    """Return the config with the paths of policy, critic, reward model and judge as folders; hub names are downloaded.

    On several nodes the hub's cache must be on storage that every node sees, or each node's cache must hold the model.
    """
    tree = config.model_dump()
    if reads_policy(config):
        tree["model"]["path"] = _local("model.path", config.model.path)
    if config.critic.path is not None and config.algorithm.uses_critic:
        tree["critic"]["path"] = _local("critic.path", config.critic.path)
    if config.rewards.writing.path is not None:
        tree["rewards"]["writing"]["path"] = _local("rewards.writing.path", config.rewards.writing.path)
    if config.evaluate.judge_path is not None and config.stage == "evaluate":
        tree["evaluate"]["judge_path"] = _local("evaluate.judge_path", config.evaluate.judge_path)
    return Config.model_validate(tree)


def _local(key: str, path: str) -> str:
    if Path(path).is_absolute():
        return path
    try:
        return snapshot_download(path, allow_patterns=FILES)
    except Exception as error:  # offline, no such model, no access, no network: each its own kind
        raise UserError(
            f"{key}=hub:{path}: cannot be downloaded ({type(error).__name__}); download it first and name the folder"
        ) from error
