"""The stages of a pipeline as configs of the front door: words with their slots filled, composed and checked."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.compose import compose
from launch.pipeline_account import has_completed, summary_of
from launch.preflight import preflight
from launch.run_folder import run_path
from lwz_ray.config import Config
from lwz_ray.config_pipeline import SLOT, PipelineConfig
from lwz_ray.errors import UserError

EXPORTS_A_POLICY = ("rl", "pretrain", "sft")
STAND_IN = "1"
"""For a number that an earlier stage has yet to measure."""
NO_PIPELINE = PipelineConfig(command=[], stages={}, words={}, arms={})


@dataclass(frozen=True, slots=True)
class Planned:
    """One stage, ready to be run or looked at."""

    name: str
    words: list[str]
    """The whole command line of the front door."""
    config: Config
    waits_for: tuple[str, ...]
    """Of the stages that it needs, those that have not completed."""

    @property
    def folder(self) -> Path:
        return run_path(self.config.run)


def stage_folder(config: Config, name: str) -> Path:
    """Return the run folder of a stage: below the pipeline's own."""
    return run_path(config.run) / name


def plan_stage(config: Config, name: str) -> Planned:
    """Return one stage of the pipeline, composed as the front door would do it.

    A number of a stage that has not completed has a stand-in. Raises UserError with the stage's name in it.
    """
    waits_for = tuple(need for need in config.pipeline.needs_of(name) if not has_completed(stage_folder(config, need)))
    try:
        words = [
            *config.pipeline.command,
            *(_filled(word, config, waits_for) for word in config.pipeline.own_words(name)),
            f"run.dir={run_path(config.run)}",
            f"run.name={name}",
            "run.resume=auto",
            "dry_run=false",
        ]
        # The pipeline is no setting of its stage: a stage added to it leaves the others as they are.
        composed = compose(words).model_copy(update={"pipeline": NO_PIPELINE})
    except UserError as error:
        raise UserError(f"stage {name} of the pipeline: {error}") from error
    return Planned(name, words, composed, waits_for)


def plan_stages(config: Config) -> Iterator[Planned]:
    """Yield every stage in order; raises UserError at the first that cannot be composed."""
    return (plan_stage(config, name) for name in config.pipeline.stages)


def check_stages(config: Config, stages: Iterable[Planned]) -> None:
    """Check every stage as its own command would be, as far as that can be told before the stages that it needs.

    What an earlier stage has yet to write cannot be looked at, but for a policy's shape; the stage is checked again
    before it begins. Stages that have completed are passed over.
    """
    for planned, known in with_known_models(config, stages):
        if not has_completed(planned.folder):
            check_stage(config, planned, _without_absent(config, planned, known))


def check_stage(config: Config, planned: Planned, checked: Config | None = None) -> None:
    """Check one stage before it begins, or (checked: with another model) before the stages that it waits for."""
    checked = (planned.config if checked is None else checked).model_copy(update={"dry_run": config.dry_run})
    try:
        preflight(checked)
    except UserError as error:
        # The only files that may be missing are those of stages that have yet to run.
        if not any(str(stage_folder(config, name)) in str(error) for name in planned.waits_for):
            raise UserError(f"stage {planned.name} of the pipeline: {error}") from error


def with_known_models(config: Config, stages: Iterable[Planned]) -> Iterator[tuple[Planned, Config]]:
    """Yield each stage with a config whose policy is there to be looked at.

    A policy that is still to be trained has the shape of the model that its training starts from.
    """
    models: dict[str, str] = {}
    for planned in stages:
        known = planned.config
        for name in planned.waits_for:
            export = str(stage_folder(config, name) / "export")
            if name in models and known.model.path == export:
                known = known.model_copy(update={"model": known.model.model_copy(update={"path": models[name]})})
            if known.critic.path == export:  # null: a critic of the policy's shape
                known = known.model_copy(update={"critic": known.critic.model_copy(update={"path": None})})
        if known.stage in EXPORTS_A_POLICY:
            models[planned.name] = known.model.path
        yield planned, known


def _without_absent(config: Config, planned: Planned, known: Config) -> Config:
    """Leave out a reward model and documents that are still to be made, so that what is there is checked without them.

    Sources are left where all of them are to be made: a corpus needs one.
    """
    folders = [stage_folder(config, name) for name in planned.waits_for]

    def is_absent(path: str | None) -> bool:
        return path is not None and any(Path(path).is_relative_to(folder) for folder in folders)

    if is_absent(known.rewards.writing.path):
        writing = known.rewards.writing.model_copy(update={"path": None})
        known = known.model_copy(update={"rewards": known.rewards.model_copy(update={"writing": writing})})
    there = {name: source for name, source in known.corpus.sources.items() if not is_absent(source.path)}
    return known.model_copy(update={"corpus": known.corpus.model_copy(update={"sources": there})}) if there else known


def _filled(word: str, config: Config, waits_for: Collection[str]) -> str:
    return SLOT.sub(lambda found: _slot(found[0], found[1], found[2], config, waits_for), word)


def _slot(whole: str, name: str, key: str, config: Config, waits_for: Collection[str]) -> str:
    if name == "request":
        return whole
    folder = stage_folder(config, name)
    if not key:
        return str(folder)
    return STAND_IN if name in waits_for else _number(whole, folder, key[1:])


def _number(whole: str, folder: Path, key: str) -> str:
    """Return a number of a completed stage's summary, by its dotted key."""
    value: Any = summary_of(folder)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{whole}: {key}={value!r} in {folder / 'summary.json'}: a number above 0 is needed")
    return str(value)
