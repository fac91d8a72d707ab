"""The user's DeepSpeed file (`learners.deepspeed_config`): read and checked before anything starts."""

import json
from pathlib import Path
from typing import Any

from learners.deepspeed_config import check_overrides
from lwz_ray.config import Config
from lwz_ray.errors import UserError


def read_deepspeed_file(config: Config) -> dict[str, Any]:
    """Return the file's content, to be merged over the generated config; empty where none is named.

    Raises UserError where it is missing or no JSON object, or for a key that this project sets, does not know, or
    that has a value of another type.
    """
    path = config.learners.deepspeed_config
    if path is None:
        return {}
    source = f"learners.deepspeed_config={path!r}"
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{source}: no such file; name a JSON file with DeepSpeed's keys, or null") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: is no JSON file ({error})") from error
    try:
        check_overrides(found, source)
    except ValueError as error:
        raise UserError(str(error)) from error
    return found
