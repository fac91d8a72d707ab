"""What the config tree accepts, in words: known keys, what each needs, and pydantic's errors as one line."""

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lwz_ray.config import Config

_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}


@dataclass(frozen=True, slots=True)
class Key:
    """One dotted key: what its value must be, in words, and whether raw text is taken as it is."""

    needs: str
    is_section: bool
    is_text: bool
    nullable: bool
    entries: "Key | None" = None
    """Of a map whose names are the user's to choose, what each entry must be."""
    inside: "dict[str, Key] | None" = None
    """Of a map of sections with such names, the keys of each."""


def key_of(name: str, keys: Mapping[str, Key]) -> Key | None:
    """Return what is known of a dotted key, also of an entry in a map with free names; None for an unknown one."""
    if name in keys:
        return keys[name]
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        parent, rest = keys.get(".".join(parts[:length])), parts[length + 1 :]
        if parent is not None and parent.entries is not None:
            # Where entries are no sections, a name may hold dots: benchmark.baselines.gpt-4.1.
            return parent.entries if not rest or parent.inside is None else parent.inside.get(".".join(rest))
    return None


def map_of(name: str, keys: Mapping[str, Key]) -> str | None:
    """Return the map with free names, none of them a section's, that a dotted key is an entry of."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        section = ".".join(parts[:length])
        if section in keys and keys[section].entries is not None and keys[section].inside is None:
            return section
    return None


def known_keys(model: type[BaseModel] = Config) -> dict[str, Key]:
    """Return every dotted key of the tree, sections included, in the order of declaration."""
    return dict(_walk(model, ""))


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return the candidate closest to `name`, by the whole dotted key or by its last part."""

    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    def closeness(candidate: str) -> float:
        tail = ratio(name.rpartition(".")[2], candidate.rpartition(".")[2])
        return max(ratio(name, candidate), 0.95 * tail)

    return max(candidates, key=closeness)


def unknown_key(name: str) -> str:
    """Say that a key is unknown and which one is nearest, in a section that the user named among that section's own."""
    keys = known_keys()
    if (named := _named_section(name, keys)) is not None:
        section, inside = named
        rest = name.removeprefix(f"{section}.")
        return f"unknown key '{name}': did you mean '{section}.{nearest(rest, inside)}'? (it has {', '.join(inside)})"
    closest = nearest(name, [*keys, *_in_sections_named(name, keys)])
    if closest in keys and keys[closest].is_section:
        return f"unknown key '{name}': did you mean a key of '{closest}'? (--cfg job lists them)"
    return f"unknown key '{name}': did you mean '{closest}'?"


def _named_section(name: str, keys: Mapping[str, Key]) -> tuple[str, dict[str, Key]] | None:
    """Return the section with a name of the user's that a key lies in, and the keys of such a section; None: in none.

    Example: corpus.sources.books.pathh lies in corpus.sources.books, which has path, split, column and weight.
    """
    parts = name.split(".")
    for length in range(1, len(parts) - 1):
        parent = keys.get(".".join(parts[:length]))
        if parent is not None and parent.inside is not None:
            return ".".join(parts[: length + 1]), parent.inside
    return None


def _in_sections_named(name: str, keys: Mapping[str, Key]) -> Iterator[str]:
    """Yield the keys of sections with names of the user's choice, where a part of `name` is taken for that choice."""
    parts = name.split(".")
    for section, key in keys.items():
        depth = section.count(".") + 1
        if key.inside is not None and len(parts) > depth + 1:
            yield from (f"{section}.{parts[depth]}.{inner}" for inner in key.inside)


def explain(error: ValidationError) -> str:
    """Translate a validation error into one line that names key, value and what is needed."""
    lines = [_explain_one(e) for e in error.errors(include_url=False)]
    shown = list(dict.fromkeys(lines))
    more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""
    return "; ".join(shown[:3]) + more


def _explain_one(error: Any) -> str:
    loc = tuple(error["loc"])
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    keys = known_keys()
    if loc and loc[-1] == "[key]":
        parent = keys.get(".".join(map(str, loc[:-2])))
        if parent is not None and parent.entries is not None:
            return f"{'.'.join(map(str, loc[:-2]))}: the name {loc[-2]!r} {_needs_of_name(error)}"
        return unknown_key(".".join(map(str, loc[:-1])))
    dotted = ".".join(map(str, loc))
    if error["type"] == "extra_forbidden":
        return unknown_key(dotted)
    if error["type"] == "missing":
        missing = key_of(dotted, keys)
        assert missing is not None, dotted
        return f"missing key '{dotted}': needs {missing.needs}"
    index = f"[{loc[-1]}]" if loc and isinstance(loc[-1], int) else ""
    key = dotted.removesuffix(f".{loc[-1]}") if index else dotted
    value = repr(error["input"])
    value = value if len(value) <= 80 else value[:77] + "..."
    found = key_of(key, keys)
    needs = error["msg"] if found is None else found.needs
    return f"{key}{index}={value} ({type(error['input']).__name__}): needs {needs}"


def _needs_of_name(error: Any) -> str:
    """Say what a name in a map has to be."""
    pattern = error.get("ctx", {}).get("pattern")
    return f"has to match {pattern}" if pattern else f"is refused: {error['msg']}"


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Key]]:
    for name, field in model.model_fields.items():
        dotted = prefix + name
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            inner = ", ".join(annotation.model_fields)
            yield dotted, Key(f"a section with the keys {inner}", is_section=True, is_text=False, nullable=False)
            yield from _walk(annotation, dotted + ".")
            continue
        needs = _needs(annotation, field.metadata)
        members = _members(annotation)
        text = any(m is str or isinstance(_first_choice(m), str) for m in members)
        names, value = get_args(annotation) if get_origin(annotation) is dict else (None, None)
        free = names is not None and str in _members(names)
        inside = known_keys(value) if isinstance(value, type) and issubclass(value, BaseModel) else None
        entry = Key(_needs(value, ()), inside is not None, value is str, nullable=False) if free else None
        yield dotted, Key(needs, False, text, types.NoneType in members, entries=entry, inside=inside)
        if names is not None and not free:
            for choice in get_args(names):
                yield f"{dotted}.{choice}", Key(_needs(value, ()), is_section=False, is_text=False, nullable=False)


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union (one for anything else), without their constraints."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for part in get_args(annotation) for m in _members(part))
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    return (annotation,)


def _needs(annotation: Any, metadata: Iterable[Any]) -> str:
    """Say in words what a type with its constraints accepts."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _needs(args[0], [*metadata, *args[1:]])
    if origin in (Union, types.UnionType):
        return " or ".join(_needs(part, ()) for part in args)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is list:
        return f"a list, each {_needs(args[0], ())}{_bounds(metadata)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section with the keys {', '.join(annotation.model_fields)}"
    if origin is dict:
        return f"a map from {_needs(args[0], ())} to {_needs(args[1], ())}"
    return f"{_WORDS[annotation]}{_bounds(metadata)}"


def _bounds(metadata: Iterable[Any]) -> str:
    words = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            words.append(_bounds(item.metadata))
            continue
        words += [f" {sign} {getattr(item, name):g}" for name, sign in _BOUNDS.items() if hasattr(item, name)]
        if (low := getattr(item, "min_length", None)) is not None:
            words.append(f" (at least {low})")
        if (high := getattr(item, "max_length", None)) is not None:
            words.append(f" (at most {high})")
        if (pattern := getattr(item, "pattern", None)) is not None:
            words.append(f" that matches {pattern}")
    return " and".join(w for w in words if w)


def _first_choice(member: Any) -> Any:
    """Return the first value of a Literal, None of other types; the choices of one key are of one type."""
    return get_args(member)[0] if get_origin(member) is Literal else None
