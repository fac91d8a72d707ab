"""What `stage=pipeline` can be refused for before its first stage begins: every command is composed and checked."""

from launch.pipeline_disk import check_pipeline_disk
from launch.pipeline_records import check_results
from launch.pipeline_stages import check_stages, plan_stages
from launch.run_folder import holds_a_run
from lwz_ray.config import Config
from lwz_ray.errors import UserError


def check(config: Config) -> None:
    """Raise UserError on the first thing that would stop a stage later, as far as it can be told now."""
    if not config.pipeline.stages:
        raise UserError("stage=pipeline without stages: choose a recipe, such as pipeline=zero or run=zero_smoke")
    stages = list(plan_stages(config))
    for planned in stages:
        if config.run.resume == "never" and holds_a_run(planned.folder):
            raise UserError(
                f"{planned.folder} already holds a run of this pipeline: choose another run.name, or continue with "
                "run.resume=auto"
            )
    check_results(config, stages)
    check_stages(config, stages)
    if not config.dry_run:
        check_pipeline_disk(config, stages)
