"""The plan of `stage=pipeline`: its stages in order, and the memory of the one that takes most."""

from dataclasses import replace

from launch.memory import Estimate
from launch.pipeline_disk import disk_needs, disk_text
from launch.pipeline_records import state_of
from launch.pipeline_stages import Planned, plan_stages, stage_folder, with_known_models
from launch.run_folder import run_path
from launch.shapes import ModelShape, shape_of
from launch.stage_table import STAGES
from lwz_ray.config import Config


def batch(config: Config) -> list[str]:
    """Return one line a stage, with its words, how far it has come, and what it waits for."""
    lines = [f"pipeline of {len(config.pipeline.stages)} stages, one after the other"]
    width, stages = max(map(len, config.pipeline.stages)), list(plan_stages(config))
    for number, planned in enumerate(stages, start=1):
        waits = f"; needs {', '.join(planned.waits_for)}" if planned.waits_for else ""
        lines.append(f"  {number:>2} {planned.name:<{width}}  {state_of(config, planned)}{waits}")
        lines.append(f"     {' '.join(config.pipeline.own_words(planned.name))}")
    if needs := disk_needs(config, stages):
        lines.append(f"  disk under {run_path(config.run)}: {disk_text(needs)}")
    arms = ", ".join(f"{arm} ({name})" for arm, name in config.pipeline.arms.items())
    return [*lines, f"  compared at the end: {arms or 'nothing'}"]


def estimates(config: Config, shape: ModelShape) -> list[Estimate]:
    """Return the estimates of the stage whose processes take most together: only one runs at a time.

    shape: of the pipeline's own model.path; each stage says again which model it takes.
    """
    found = [_of_stage(config, *each) for each in with_known_models(config, plan_stages(config))]
    return max(found, key=lambda each: sum(e.num_bytes * e.num_processes for e in each), default=[])


def _of_stage(config: Config, planned: Planned, known: Config) -> list[Estimate]:
    writing = known.rewards.writing
    if any(writing.path == str(stage_folder(config, name) / "export") for name in planned.waits_for):
        # A reward model that is still to be trained is as large as the model that it is trained from.
        with_a_model = writing.model_copy(update={"path": config.model.path})
        known = known.model_copy(update={"rewards": known.rewards.model_copy(update={"writing": with_a_model})})
    return [
        replace(e, title=f"stage {planned.name}: {e.title}")
        for e in STAGES[known.stage].estimates()(known, shape_of("model.path", known.model.path))
    ]
