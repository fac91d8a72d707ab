"""Lines of a benchmark's files and the fields of a line; every complaint says which file, line and column."""

import difflib
from collections.abc import Callable
from typing import Any, Literal

from lwz_ray.errors import UserError
from lwz_ray.sources import BadRow, read_rows
from lwz_ray.text import detect_language, half_character


class BadLineError(Exception):
    """Why a line is no request, answer or member of a subset."""


def read_lines(
    path: str,
    what: str,
    needed: tuple[str, ...],
    allowed: tuple[str, ...] | None,
    build: Callable[[dict[str, Any], int], tuple[str, Any]],
) -> dict[str, Any]:
    """Return what `build` makes of each line and its index, by id, in order.

    what: the kind of line, for complaints. allowed: columns beside the needed ones; None: any.
    Raises UserError for what `build` raises as BadLineError, for wrong columns, an id that comes twice and no lines.
    """
    found: dict[str, Any] = {}
    places: dict[str, str] = {}
    for index, row in enumerate(read_rows(path, "train")):
        try:
            if isinstance(row.content, BadRow):
                raise BadLineError(row.content.reason)
            check_columns(row.content, what, needed, allowed)
            key, item = build(row.content, index)
            if key in found:
                raise BadLineError(f"id {key!r} is already that of {places[key]}")
        except BadLineError as error:
            raise UserError(f"{path}, {row.place}: {error}") from error
        found[key], places[key] = item, row.place
    if not found:
        raise UserError(f"{path}: no line in it; {what} needs {', '.join(needed)}")
    return found


def check_columns(content: dict[str, Any], what: str, needed: tuple[str, ...], allowed: tuple[str, ...] | None) -> None:
    """Raise BadLineError where a needed column is missing, or one is there that nobody knows."""
    missing = [name for name in needed if name not in content]
    unknown = [name for name in content if name not in (*needed, *(allowed or ()))]
    if missing:
        near = difflib.get_close_matches(missing[0], unknown, n=1)
        hint = f"; rename {near[0]!r}?" if near else ""
        raise BadLineError(f"no column {missing[0]!r} of {what} among {', '.join(sorted(content))}{hint}")
    if unknown and allowed is not None:
        known = ", ".join((*needed, *allowed))
        raise BadLineError(f"unknown column {unknown[0]!r}: {what} has {known}; remove or rename it")


def id_of(content: dict[str, Any], column: str) -> str:
    """Return an id as text: 7 and "7" are the same."""
    value = content[column]
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise BadLineError(f"{column}={short(value)}: a number or a name is needed")
    return str(value)


def text_of(content: dict[str, Any], column: str) -> str:
    """Return a text that says something."""
    value = content[column]
    if not isinstance(value, str) or not value.strip():
        raise BadLineError(f"{column}={short(value)}: text is needed")
    if (at := half_character(value)) is not None:
        raise BadLineError(f"{column} holds half of a character at character {at}; remove it")
    return value


def length_of(value: Any) -> int:
    """Return a required number of words."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadLineError(f"length={short(value)}: a number of words from 1 on is needed")
    return value


def language_of(content: dict[str, Any], column: str, text: str) -> Literal["en", "zh"]:
    """Return the language that the line names, else the one that the text is in."""
    value = content.get(column)
    if value is None:
        return detect_language(text)
    if value not in ("en", "zh"):
        raise BadLineError(f"{column}={short(value)}: en or zh is needed")
    return value


def short(value: Any) -> str:
    """Return a value as it is shown in a complaint."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
