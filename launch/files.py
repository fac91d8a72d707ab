"""Files that a reader never sees half-written, and JSON that every reader can parse."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import yaml

from lwz_ray.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a file aside in the same folder; at the end force it to disk and rename it over `path`.

    Where the body raises, `path` stays as it was and nothing is left aside.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a whole file that no reader sees half-written."""
    with replacing(path) as file:
        file.write(text)


def plain(value: Any) -> Any:
    """Return `value` in JSON's own types: numpy becomes Python, NaN and infinities become null.

    JSON has no NaN, and browsers refuse a file that holds one; null says "no number" and a curve shows a gap.
    Raises TypeError on anything that has no such form.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def to_json(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON text; Chinese stays readable."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text_atomic(path, to_json(value, indent=2) + "\n")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the map in a YAML file such as a run's config.yaml; raises UserError where it holds none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())}); restore it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no settings; restore it, or name another folder")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; raises UserError with the line where it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); restore or remove the file") from error


def iter_json_lines(path: Path, cut: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the objects of a .jsonl file, one line in memory at a time; a file that does not exist holds none.

    A process that is killed while it writes leaves at most its last line incomplete: that text goes into `cut`.
    Any other line that does not parse raises UserError with file and line number.
    """
    if not path.exists():
        return
    # newline="\n": JSON strings may hold U+2028 and its kind, which other ways of splitting would cut at.
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if line.endswith("\n"):
                    raise UserError(
                        f"{path}, line {number}: not JSON ({error.msg}); restore or remove the line"
                    ) from error
                if cut is not None:
                    cut.append(line)
                return
            yield row


def complete_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a .jsonl file that only this process appends to.

    A last line that a kill cut short is removed from the file, and one without its line end gets it, or the next one
    would continue it.
    """
    cut: list[str] = []
    rows = list(iter_json_lines(path, cut))
    if cut or (rows and not path.read_bytes().endswith(b"\n")):
        with replacing(path) as file:
            file.writelines(to_json(row) + "\n" for row in rows)
    return rows


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one object to a .jsonl file; when this returns, a kill of this process no longer loses it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(row) + "\n")
