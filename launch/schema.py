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


def key_of(name: str, keys: Mapping[str, Key]) -> Key | None:
    """Return what is known of a dotted key, also of an entry in a map with free names; None for an unknown one."""
    if name in keys:
        return keys[name]
    parent = keys.get(name.rpartition(".")[0])
    return None if parent is None else parent.entries


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
    """Say that a key is unknown and which one is nearest."""
    keys = known_keys()
    closest = nearest(name, keys)
    if keys[closest].is_section:
        return f"unknown key '{name}': did you mean a key of '{closest}'? (--cfg job lists them)"
    return f"unknown key '{name}': did you mean '{closest}'?"


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
        return unknown_key(".".join(map(str, loc[:-1])))
    dotted = ".".join(map(str, loc))
    if error["type"] == "extra_forbidden":
        return unknown_key(dotted)
    if error["type"] == "missing":
        return f"missing key '{dotted}': needs {keys[dotted].needs}"
    index = f"[{loc[-1]}]" if loc and isinstance(loc[-1], int) else ""
    key = dotted.removesuffix(f".{loc[-1]}") if index else dotted
    value = repr(error["input"])
    value = value if len(value) <= 80 else value[:77] + "..."
    found = key_of(key, keys)
    needs = error["msg"] if found is None else found.needs
    return f"{key}{index}={value} ({type(error['input']).__name__}): needs {needs}"


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
        entry = Key(_needs(value, ()), is_section=False, is_text=False, nullable=False) if names is str else None
        yield dotted, Key(needs, is_section=False, is_text=text, nullable=types.NoneType in members, entries=entry)
        if names is not None:
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
            words.append(f" that matches {pattern} (it names a folder)")
    return " and".join(w for w in words if w)


def _first_choice(member: Any) -> Any:
    """Return the first value of a Literal, None of other types; the choices of one key are of one type."""
    return get_args(member)[0] if get_origin(member) is Literal else None
