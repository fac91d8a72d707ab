"""Whether the endpoint's address and key can work, told before anything is sent."""

import os
from urllib.parse import urlsplit

from lwz_ray.config import JudgeConfig
from lwz_ray.errors import UserError


def check_judge_settings(config: JudgeConfig) -> None:
    """Refuse an address or a key that cannot work, before anything is sent or loaded.

    Raises UserError; no message holds the key or a password.
    """
    if config.base_url is None:
        raise UserError("judge.base_url=null: name an OpenAI-compatible endpoint such as http://127.0.0.1:8000/v1")
    parts = urlsplit(config.base_url)
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"judge.base_url holds a user name or password for {parts.hostname}: keys belong into the environment "
            "variable that judge.api_key_env names"
        )
    if parts.query or parts.fragment:
        raise UserError(
            f"judge.base_url: what stands after {parts.scheme}://{parts.hostname}{parts.path} cannot be sent, since "
            "paths are added to the address; remove it, and give a key with judge.api_key_env"
        )
    try:
        port_is_good = parts.port is None or parts.port > 0
    except ValueError:  # no number, or above 65535
        port_is_good = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good:
        raise UserError(f"judge.base_url={config.base_url}: needs the form http://host:port/v1")
    read_key(config)


def read_key(config: JudgeConfig) -> str | None:
    """Return the key, None where the endpoint asks for none; raises UserError where its variable is not set."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"judge.api_key_env={config.api_key_env}: this environment variable is not set; export it where the run "
            "is started, or set judge.api_key_env=null for an endpoint that asks for no key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"judge.api_key_env={config.api_key_env}: what this environment variable holds is no key: needs printable "
            "ASCII without spaces"
        )
    return key
