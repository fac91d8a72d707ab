"""What `stage=curate` can be refused for before a model is loaded or Ray started."""

from launch import preflight
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.good_texts import split_prompts
from lwz_ray.sources import HUB, local_file


def check_curate(config: Config) -> None:
    """Raise UserError on the first thing that would stop the stage later: the model where it is needed, the sources."""
    from launch.stages.curate import needs_model, read_sources

    if needs_model(config):
        preflight.check_address(config)
        preflight.check_policy(config)
    texts = config.curate.texts_path
    key, path = ("curate.texts_path", texts) if texts is not None else ("data.path", config.data.path)
    if path.startswith(HUB):
        return
    try:
        local_file(path)
    except UserError as error:
        raise UserError(f"{key}: {error}; name a .jsonl or .parquet file, or hub:owner/name") from error
    sources, _ = read_sources(config, None)
    split_prompts([prompt.prompt_id for prompt, _ in sources], config.curate.held_out_share, config.seed)
