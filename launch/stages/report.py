"""`stage=report run.name=…`: render a run's report again."""

from launch.report import write_report
from launch.run_folder import run_path
from lwz_ray.config import Config
from lwz_ray.errors import UserError


def run(config: Config) -> int:
    """Write the report of the run that `run.dir` and `run.name` name, print its path, and return 0."""
    folder = run_path(config.run)
    if not folder.is_dir():
        raise UserError(f"run.name={config.run.name}: there is no run folder {folder}; check run.dir and run.name")
    print(f"report: {write_report(folder)}")
    return 0
