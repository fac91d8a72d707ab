"""Rows of a prompt source: a .jsonl or .parquet file, a file of a package, or a hub data set."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwz_ray.errors import UserError

HUB = "hub:"
PACKAGE = "package://"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read."""

    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, in words for an error: `line 3` or `row 3`, counted from 1."""

    place: str
    content: dict[str, Any] | BadRow


def read_rows(path: str, split: str) -> Iterator[Row]:
    """Yield the rows of a source in order; `split` is read only for `hub:` data sets.

    Raises UserError where the source does not exist, cannot be read, or is of another kind.
    """
    if path.startswith(HUB):
        return _read_hub(path, split)
    file = local_file(path)
    if file.suffix == ".jsonl":
        return _read_jsonl(file)
    if file.suffix == ".parquet":
        return _read_parquet(file)
    raise UserError(f"data source {path!r}: of unknown kind; use a .jsonl or .parquet file, or hub:owner/name")


def local_file(path: str) -> Path:
    """Return the file of a path; `package://lwz_ray/prompts/train.jsonl` is a file beside that package's code.

    Raises UserError where it does not exist.
    """
    file = _package_file(path) if path.startswith(PACKAGE) else Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"data source {path!r}: a folder, where a file is needed")
    if not file.is_file():
        raise UserError(f"data source {path!r}: no such file" + (f" ({file})" if str(file) != path else ""))
    return file


def _package_file(path: str) -> Path:
    package, _, rest = path.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations or not rest or ".." in Path(rest).parts:
        raise UserError(f"data source {path!r}: write {PACKAGE}<package>/<file>, with a package that can be imported")
    return Path(spec.submodule_search_locations[0]) / rest


def _read_jsonl(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if raw.strip():
                yield Row(f"line {number}", parse_line(raw))


def parse_line(raw: bytes) -> dict[str, Any] | BadRow:
    """Return the object of one line of a .jsonl file, or what is wrong with it."""
    raw = raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    try:
        content = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON at column {error.colno} ({error.msg})")
    return content if isinstance(content, dict) else BadRow(f"a JSON object is needed, got {type(content).__name__}")


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"data source {str(file)!r}: no readable Parquet file ({_one_line(error)})") from error
    number = 0
    for batch in table.iter_batches(batch_size=1024):
        for content in batch.to_pylist():
            number += 1
            yield Row(f"row {number}", content)


def load_hub(path: str, split: str) -> Any:
    """Return the `datasets.Dataset` of `hub:owner/name`; raises UserError where it cannot be loaded."""
    import datasets

    name = path.removeprefix(HUB)
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds: names, splits, network, cache
        raise UserError(
            f"data source {path!r}, split {split!r}: cannot be loaded ({type(error).__name__}: {_one_line(error)}); "
            "without a network name a local .jsonl or .parquet file"
        ) from error


def _read_hub(path: str, split: str) -> Iterator[Row]:
    for number, content in enumerate(load_hub(path, split), start=1):
        yield Row(f"row {number}", dict(content))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
