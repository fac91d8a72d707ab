"""What `recipe=chat_logs` can be refused for before a model is loaded, Ray started or anything asked."""

from itertools import islice

from launch import preflight
from launch.chat_open import check_chat
from lwz_ray.chat_logs import tell_format
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.overlap import read_benchmarks
from lwz_ray.sources import HUB, BadRow, local_file, read_rows

LOOKED_AT = 16
"""First rows of a source that are read."""


def check(config: Config) -> None:
    """Raise UserError on the first thing that would stop the recipe later: sources, benchmarks, who is asked."""
    logs = config.curate.chat_logs
    if not logs.paths:
        raise UserError("recipe=chat_logs needs chat logs: curate.chat_logs.paths=[FILE, …], .jsonl or .parquet files")
    twice = next((path for path in logs.paths if logs.paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"curate.chat_logs.paths names {twice} twice: take one out")
    if logs.max_upper_words < logs.granularity_words:
        raise UserError(
            f"curate.chat_logs.max_upper_words={logs.max_upper_words} is below "
            f"curate.chat_logs.granularity_words={logs.granularity_words}: no range fits; raise it"
        )
    for path in logs.paths:
        _check_source(config, path)
    read_benchmarks(logs.benchmarks)
    if logs.asked == "engine":
        preflight.check_address(config)
    check_chat(config, "curate")


def _check_source(config: Config, path: str) -> None:
    """Look at the first rows of a file; a hub data set is loaded by the run."""
    if path.startswith(HUB):
        return
    try:
        local_file(path)
    except UserError as error:
        raise UserError(f"curate.chat_logs.paths: {error}; name .jsonl or .parquet files, or hub:owner/name") from error
    logs, row = config.curate.chat_logs, None
    for row in islice(read_rows(path, logs.split), LOOKED_AT):
        if not isinstance(row.content, BadRow):
            if logs.format == "auto":
                tell_format(row.content, path)
            return
        if config.data.on_bad_row == "error":
            raise UserError(
                f"{path}, {row.place}: {row.content.reason}; correct it, or leave such rows out with "
                "data.on_bad_row=skip"
            )
    if row is None:
        raise UserError(f"curate.chat_logs.paths: {path} holds no row; name another file, or leave it out")
