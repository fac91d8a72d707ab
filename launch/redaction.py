"""Keep secrets of the environment and the command line out of everything a run writes."""

import re
from collections.abc import Mapping
from typing import Any

# Not `max_tokens`, `token_ids` and `tokenizer`: they hide nothing.
SECRET_NAME = re.compile(
    r"token(?!s\b|s$|_ids|iz)|secret|passw|credential|api_?key|access_?key|private_?key|authorization", re.IGNORECASE
)
URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
MIN_SECRET_LENGTH = 8
HIDDEN = "[hidden]"


def is_secret_name(name: str) -> bool:
    """Say whether a variable or option of this name holds a secret."""
    return bool(SECRET_NAME.search(name))


def secret_values(environ: Mapping[str, str]) -> list[str]:
    """Return the values of secret variables, longest first, so that one inside another leaves no rest."""
    found = {v for k, v in environ.items() if is_secret_name(k) and len(v) >= MIN_SECRET_LENGTH}
    return sorted(found, key=len, reverse=True)


def redact(value: Any, environ: Mapping[str, str]) -> Any:
    """Return strings, lists and dicts with every secret value of the environment and every login in a URL hidden."""
    return _redact(value, secret_values(environ))


def redact_command(arguments: list[str], environ: Mapping[str, str]) -> list[str]:
    """Return a command line with secret values and the values of secret-named options hidden.

    >>> redact_command(["run", "hub.token=abc", "--api-key", "abc", "steps=3"], {})
    ['run', 'hub.token=[hidden]', '--api-key', '[hidden]', 'steps=3']
    """
    result: list[str] = []
    hide_next = False
    for argument in redact(list(arguments), environ):
        name, equals, _ = argument.partition("=")
        secret = is_secret_name(name.replace("-", "_"))
        if hide_next:
            result.append(HIDDEN)
        elif secret and equals:
            result.append(f"{name}={HIDDEN}")
        else:
            result.append(argument)
        hide_next = secret and not equals and argument.startswith("-") and not hide_next
    return result


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return URL_LOGIN.sub(HIDDEN, value)
    if isinstance(value, Mapping):
        return {k: _redact(v, secrets) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact(v, secrets) for v in value]
    return value
