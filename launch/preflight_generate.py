"""What `stage=generate` can be refused for before a model is loaded or Ray started."""

from launch import preflight
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.sources import HUB, local_file
from lwz_ray.text import half_character


def check(config: Config) -> None:
    """Raise UserError on the first thing that would stop the stage later: the model, the request or the prompts."""
    from launch.stages.generate import read_prompts

    preflight.check_address(config)
    preflight.check_policy(config)
    text, path = config.generate.text, config.data.path
    if text is not None:
        if not text.strip():
            raise UserError("generate.text is empty: write the request, or set it to null for the prompts of data.path")
        if (at := half_character(text)) is not None:
            raise UserError(f"generate.text is no text at character {at}: write it in UTF-8")
        return
    if path.startswith(HUB):
        return
    try:
        local_file(path)
    except UserError as error:
        raise UserError(f"data.path: {error}; name a .jsonl or .parquet file, or hub:owner/name") from error
    read_prompts(config, None)
