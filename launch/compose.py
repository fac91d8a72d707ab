"""Hydra groups and command-line words composed into one frozen, typed config; every error is one line.

Hydra composes the groups; values are laid over the result here, so that `key=value`, `+key=value` and
`++key=value` mean the same, text needs no quoting, and a wrong key or type gets an answer that names it.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from launch.paths import absolute_paths
from launch.schema import Key, explain, key_of, known_keys, map_of, nearest, unknown_key
from lwz_ray.config import Config
from lwz_ray.config_pipeline import PipelineConfig
from lwz_ray.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"
SCALED = ("actors.replicas", "rewards.replicas")
"""What stage=scale changes in a run that goes on."""


class Words(NamedTuple):
    """A command line taken apart."""

    groups: list[str]
    """Hydra's `group=choice`."""
    values: list[tuple[str, Any]]
    """Dotted key and parsed value, in order; the last wins."""
    folders: list[Path]
    """Config folders, searched after the package's own."""


def compose(argv: Sequence[str]) -> Config:
    """Return the config of a command line such as `["run=demo_cpu", "steps=5"]`.

    Raises UserError with one line for every mistake in it.
    """
    words = parse_words(argv)
    tree = _compose_tree(words)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error)) from error
    if config.stage == "scale" and not _scaled(words):
        raise UserError(
            f"stage=scale needs {'=N or '.join(SCALED)}=N, or both: the number of Ray actors that the run is to have"
        )
    _check_recipe_is_run(words, config)
    if config.stage == "pipeline":
        config = config.model_copy(update={"pipeline": _with_command(config.pipeline, argv)})
    return absolute_paths(config, Path.cwd(), os.environ)


def _check_recipe_is_run(words: Words, config: Config) -> None:
    """Raise UserError for `pipeline=zero` alone, which would run another stage; one that is named is meant."""
    recipe = next((word for word in words.groups if word.startswith("pipeline=")), None)
    named = any(name == "stage" for name, _ in words.values)
    if recipe is not None and config.pipeline.stages and config.stage != "pipeline" and not named:
        raise UserError(f"{recipe} without stage=pipeline would run stage={config.stage} alone: add stage=pipeline")


def _with_command(pipeline: PipelineConfig, argv: Sequence[str]) -> PipelineConfig:
    """The stages of a pipeline begin with the words of its own command line."""
    if pipeline.command:
        raise UserError("pipeline.command is set by the front door: give a stage words with pipeline.words.<stage>=[…]")
    return pipeline.model_copy(update={"command": list(argv)})


def scaled_keys(argv: Sequence[str]) -> list[str]:
    """Return what a command line with stage=scale asks to change."""
    return _scaled(parse_words(argv))


def _scaled(words: Words) -> list[str]:
    """A preset's number would change the run without having been asked for: only what is named counts."""
    named = {name for name, _ in words.values}
    return [key for key in SCALED if key in named]


def choices(folders: Sequence[Path] = ()) -> dict[str, list[str]]:
    """Return the groups and the names to choose from, in alphabetical order."""
    found: dict[str, set[str]] = {}
    for folder in (CONF, *folders):
        for file in folder.glob("*/*.yaml"):
            found.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(found[group]) for group in sorted(found)}


def to_yaml(config: Config) -> str:
    """Print a config as YAML, keys in the order of declaration."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def parse_words(argv: Sequence[str]) -> Words:
    """Take a command line apart and check every key and group before anything is composed."""
    folders, plain = _split_folders(argv)
    groups = choices(folders)
    words = Words([], [], folders)
    keys = known_keys()
    for word in plain:
        name, value = _split_word(word)
        if name in groups and not value.startswith("{"):
            words.groups.append(_group_choice(name, value, groups[name]))
        elif (key := key_of(name, keys)) is not None:
            words.values.append((name, _parse_value(word, name, value, key)))
        elif value in groups.get(nearest(name, groups), ()):
            raise UserError(f"unknown group '{name}': did you mean '{nearest(name, groups)}={value}'?")
        else:
            raise UserError(unknown_key(name))
    return words


def _split_folders(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    folders, plain = [], []
    rest = iter(argv)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag == "--config-dir":
            folder = Path(value if equals else next(rest, "")).expanduser()
            if not folder.is_dir() or folder == Path():
                raise UserError(
                    f"--config-dir {str(folder)!r}: no such folder; name one with groups inside, as in conf/"
                )
            folders.append(folder.resolve())
        elif word.startswith("-"):
            raise UserError(f"unknown option '{word}': the options are --help, --cfg job and --config-dir DIR")
        else:
            plain.append(word)
    return folders, plain


def _split_word(word: str) -> tuple[str, str]:
    if word.startswith("~"):
        raise UserError(f"'{word}': a key cannot be removed, each has a reader; set another value instead")
    name, equals, value = word.partition("=")
    name = name.removeprefix("+").removeprefix("+").strip()
    if not equals or not name:
        raise UserError(f"'{word}': write key=value or group=choice, such as steps=5 or run=demo_cpu")
    return name, value


def _group_choice(group: str, value: str, known: list[str]) -> str:
    if value not in known:
        raise UserError(
            f"{group}={value!r}: no such choice, did you mean '{nearest(value, known)}'? (there are {', '.join(known)})"
        )
    return f"{group}={value}"


def _parse_value(word: str, name: str, value: str, key: Key) -> Any:
    """Parse a value by Hydra's grammar, except text, which is taken as typed (a git revision may look like 1e5)."""
    if key.is_text:
        if value == "null" and key.nullable:
            return None
        quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
        return value[1:-1] if quoted else value
    try:
        override = OverridesParser.create().parse_override(f"{name}={value}")
    except HydraException as error:
        quote = (
            f"; quote a text with other signs than letters in it: {name}=['a=b']"
            if key.needs.startswith("a list")
            else ""
        )
        raise UserError(f"'{word}': cannot be read ({_one_line(error)}); {name} needs {key.needs}{quote}") from error
    if override.is_sweep_override():
        raise UserError(f"'{word}': several values; one run takes one, write a list as {name}=[{value}]")
    return override.value()


def _compose_tree(words: Words) -> dict[str, Any]:
    search = [f"hydra.searchpath=[{','.join(f'file://{f}' for f in words.folders)}]"] if words.folders else []
    try:
        with initialize_config_dir(str(CONF), version_base=None):
            tree = hydra_compose("config", [*words.groups, *search])
        OmegaConf.set_struct(tree, False)
        for name, value in words.values:
            _lay_over(tree, name, value)
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"the config cannot be composed: {_one_line(error)}") from error
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _lay_over(tree: DictConfig, name: str, value: Any) -> None:
    unknown = _unknown_inside(name, value)
    if unknown is not None:
        raise UserError(unknown_key(unknown))
    keys = known_keys()
    key, entered = key_of(name, keys), map_of(name, keys)
    if entered is not None:
        name, value = entered, {name.removeprefix(f"{entered}."): value}
    # Sections with names of the user's choice: a map of them says which there are, and not what is added to a preset's.
    whole = isinstance(value, dict) and key is not None and key.inside is not None
    try:
        OmegaConf.update(tree, name, value, merge=not whole)
    except (OmegaConfBaseException, TypeError) as error:  # such as a list in the place of a map
        needs = "another value" if key is None else key.needs
        raise UserError(f"{name}={value!r} ({type(value).__name__}): needs {needs}") from error


def _unknown_inside(name: str, value: Any) -> str | None:
    """Return the first unknown key inside a map given as a value, such as `model={pathh: x}`."""
    if not isinstance(value, dict):
        return None
    keys = known_keys()
    for inner, deeper in value.items():
        dotted = f"{name}.{inner}"
        if key_of(dotted, keys) is None:
            return dotted
        if (found := _unknown_inside(dotted, deeper)) is not None:
            return found
    return None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    for tail in (" See https://hydra.cc", " full_key:", " Config search path:"):
        text = text.partition(tail)[0]
    return text
