"""Write `report.html`: one self-contained page about a run, from its folder alone."""

from pathlib import Path

from launch.files import write_text_atomic
from launch.report_data import read_run
from launch.report_page import render

NUM_SAMPLES = 6


def write_report(run_folder: Path, num_samples: int = NUM_SAMPLES) -> Path:
    """Render the report of a run that ended, was killed, or still runs, and return its path.

    num_samples: held-out prompts whose texts are shown, the first ones in the order of their source.
    Raises UserError where `run_folder` is no run's.
    """
    path = run_folder / "report.html"
    write_text_atomic(path, render(read_run(run_folder, num_samples)))
    return path
