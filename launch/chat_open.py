"""The language model that a stage asks: which one the config names, whether it can be had, and opening it.

curate.chat_logs.asked   endpoint ─▶ judge.base_url        engine ─▶ model.path
stage=evaluate           judge.base_url, else evaluate.judge_path in engines of this run, else nobody is asked
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from launch import preflight
from launch.chat_engine import EngineChat
from launch.chat_store import CachedChat
from launch.checkpoints import model_identity
from launch.rooms import Rooms
from lwz_ray.chat import ChatFailedError, ChatModel, ChatRequest
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from rewards.chat_endpoint import EndpointChat
from rewards.endpoint_settings import check_judge_settings

Which = Literal["curate", "judge"]
CACHE = "asked"
"""Folder below the run folder with the replies of each model that was asked."""
_PROBE = 'Reply with this JSON object and nothing else: {"ready": true}'
_PROBE_SCHEMA = {
    "type": "object",
    "properties": {"ready": {"type": "boolean"}},
    "required": ["ready"],
    "additionalProperties": False,
}


def chat_source(config: Config, which: Which) -> Literal["endpoint", "engine"] | None:
    """Say where the model that is asked runs; None: the config names no judge."""
    if which == "curate":
        return config.curate.chat_logs.asked
    if config.judge.base_url is not None:
        return "endpoint"
    return "engine" if config.evaluate.judge_path is not None else None


def check_chat(config: Config, which: Which) -> None:
    """Raise UserError where the model cannot be had, before anything is sent or loaded; does nothing without one.

    For the stage's preflight. `probe` asks an endpoint that passes this one thing.
    """
    source = chat_source(config, which)
    if source == "endpoint":
        check_judge_settings(config.judge)
    elif source == "engine":
        key, path = _engine_model(config, which)
        folder = preflight.model_folder(key, path, config.dry_run)
        if folder is None:
            return
        found = preflight.read_config(key, path, folder)
        preflight.check_writes(key, path, found)
        length_key, length = _engine_length(config, which)
        preflight.check_positions(key, path, found, length_key, length)
        preflight.check_tokenizer(key, folder)
        preflight.check_weights(key, folder)
        if not preflight.has_chat_template(folder):
            raise UserError(
                f"{key}={path!r}: its tokenizer has no chat template, so it cannot be asked; name an instruct model, "
                "or an endpoint with judge.base_url"
            )


@contextlib.asynccontextmanager
async def open_chat(config: Config, which: Which, folder: Path) -> AsyncIterator[CachedChat]:
    """Open the model that the config names, with every reply kept in the run folder; the engines end with the block.

    folder: the run folder. An engine needs Ray to be connected and its room to be free: close other engines of the run
    first. `judge_path` and `model.path` must be local folders (`launch.hub`).

    Raises UserError where the config names no model, or its engine cannot start.
    """
    source = chat_source(config, which)
    if source is None:
        raise UserError("no judge: name an endpoint with judge.base_url or a local model with evaluate.judge_path")
    path = folder / CACHE / f"{which}.jsonl"
    if source == "endpoint":
        endpoint = EndpointChat(config.judge, config.seed)
        try:
            yield CachedChat(endpoint, path)
        finally:
            await endpoint.close()
        return
    from transformers import AutoTokenizer

    config = engine_config(config, which)
    model, length = config.model, config.model.max_length_tokens
    tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    identity = {**model_identity(model.path), "weights": weights_identity(Path(model.path))}
    rooms = Rooms(config, 0)  # no weights are published
    try:
        await rooms.start()
        yield CachedChat(EngineChat(rooms.rollouts, tokenizer, length, config.seed), path, identity)
    finally:
        await rooms.close()


async def probe(chat: ChatModel, structured_output: str) -> None:
    """Ask one small thing, so that a mistake in the settings shows before anything else is done.

    It has a schema, as what follows has: an endpoint that knows no such `judge.structured_output` says so now. What is
    in the reply does not matter.

    structured_output: the endpoint's `judge.structured_output`. The reply is kept like every other, so a run that goes
    on does not ask again, except with another one of these: a server that refuses it would refuse every question.

    Raises UserError with what the endpoint said, or did not say.
    """
    messages = ({"role": "user", "content": _PROBE},)
    request = ChatRequest(messages, 16, 0.0, 1.0, 0, _PROBE_SCHEMA, f"probe/{structured_output}")
    try:
        await chat.reply(request)
    except ChatFailedError as error:
        raise UserError(
            f"{chat.name} gave no reply to a short request: {error}; see judge.base_url, judge.model and "
            "judge.structured_output"
        ) from error


def engine_config(config: Config, which: Which) -> Config:
    """Return the config with the asked model in the place of the policy, writing until it ends by itself."""
    _, path = _engine_model(config, which)
    _, length = _engine_length(config, which)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": path, "max_length_tokens": length}),
            "template": config.template.model_copy(update={"stop": ""}),
        }
    )


def _engine_model(config: Config, which: Which) -> tuple[str, str]:
    if which == "curate":
        return "model.path", config.model.path
    assert config.evaluate.judge_path is not None
    return "evaluate.judge_path", config.evaluate.judge_path


def _engine_length(config: Config, which: Which) -> tuple[str, int]:
    if which == "curate":
        return "model.max_length_tokens", config.model.max_length_tokens
    return "evaluate.judge_max_length_tokens", config.evaluate.judge_max_length_tokens


def weights_identity(folder: Path) -> list[Any]:
    """Return names, sizes and times of the weight files: a model that was trained on is another one."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob("*.safetensors"))]
    return [[name, stat.st_size, int(stat.st_mtime)] for name, stat in stats]
