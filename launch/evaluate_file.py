"""`evaluation.json`: what an evaluation found, whole, and what comparisons read."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.evaluate_judge import JudgeFacts
from launch.evaluate_scores import Found
from launch.files import read_json, write_json
from lwz_ray.benchmarks.comparing import Evaluation
from lwz_ray.benchmarks.judging import Verdict
from lwz_ray.benchmarks.records import Benchmark, Game
from lwz_ray.config import Config
from lwz_ray.errors import UserError

EVALUATION_FILE = "evaluation.json"


def write_evaluation(
    folder: Path,
    config: Config,
    benchmark: Benchmark,
    found: Found,
    facts: dict[str, Any],
    judge: JudgeFacts | None,
    verdicts: list[Verdict],
) -> None:
    """Write the file whole; facts: what `summary.json` says of the evaluation."""
    identity = "" if judge is None else f"{judge.identity}{benchmark.against}"
    numbers = Evaluation(
        name=config.run.name,
        benchmark=benchmark.name,
        requests={request.request_id: request.digest for request in benchmark.requests},
        per_request=found.per_request,
        judged=dict.fromkeys(found.judged, identity),
    )
    games = [asdict(verdict) for verdict in verdicts if isinstance(verdict, Game)]
    content = {**numbers.as_dict(), "required_words": [request.required_words for request in benchmark.requests]}
    write_json(folder / EVALUATION_FILE, content | {"overall": facts, "games": games})


def set_aside(folder: Path, attempt: int) -> None:
    """Keep the file of the attempt before as `evaluation.attempt-N.json`: nobody must take it for this attempt's."""
    file = folder / EVALUATION_FILE
    if file.is_file():
        os.replace(file, folder / f"evaluation.attempt-{attempt - 1}.json")


def read_evaluation(folder: Path) -> tuple[Evaluation, dict[str, Any], list[Game]]:
    """Return the numbers by request, the facts, and the games of a folder's evaluation.

    Raises UserError where there is none, or none that can be read.
    """
    path = folder / EVALUATION_FILE
    if not path.is_file():
        raise UserError(f"{folder}: holds no {EVALUATION_FILE}; name the run folder of a stage=evaluate")
    content = read_json(path)
    numbers = Evaluation.from_dict(content, str(path))
    try:
        return numbers, dict(content["overall"]), [Game(**row) for row in content["games"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no evaluation ({type(error).__name__}: {error}); run stage=evaluate again") from error
