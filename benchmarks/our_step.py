"""Time a training step of our own loop: a real run through the front door, read from its metrics.jsonl.

    python -m benchmarks.our_step --out bench/synchronous.json max_staleness=0
    python -m benchmarks.our_step --out bench/asynchronous.json max_staleness=1 actors.threads=1 learners.threads=1

A step lasts from the end of the one before to its own (`time/step_s`): waiting for groups, training, publishing the
weights. Evaluation, checkpoint and export lie outside. With `max_staleness` the last steps have nothing left to
generate beside them and would look too fast: as many steps are added at the end and not measured.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import StepTime, SystemTimes
from benchmarks.workload import WARM_UP_STEPS, bench_config, bench_words
from launch.files import iter_json_lines
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}
TIMEOUT_S = 3600.0
STOP_TIMEOUT_S = 90.0
LOG_LINES = 20
SECTIONS = ("model", "sampling", "algorithm", "optimizer", "actors", "learners", "weights")


def run_ours(argv: Sequence[str], log: Path, timeout_s: float = TIMEOUT_S) -> SystemTimes:
    """Run the loop in a process of its own, in a temporary folder beside `log`, and return its steps' times.

    argv: words of the bench's command line. Raises InfrastructureError with the log's end where the run fails.
    """
    config = bench_config(argv)
    total = config.steps + config.max_staleness
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=log.parent) as folder:
        words = [
            *bench_words(argv), f"steps={total}", f"run.dir={Path(folder).resolve()}", "run.name=bench",
            "run.resume=never", f"run.checkpoint_every_steps={total}",
            "eval.num_prompts=1", "eval.samples_per_prompt=1", "eval.every_steps=0",
            "tracking.wandb=false", "tracking.progress=false",
        ]  # fmt: skip
        run_logged([sys.executable, "-m", "lwz_ray.main", *words], log, timeout_s)
        rows = list(iter_json_lines(Path(folder) / "bench" / "metrics.jsonl"))
    return SystemTimes(name_of(config), read_steps(rows, total), WARM_UP_STEPS, config.steps, our_settings(config))


def read_steps(rows: Sequence[dict[str, Any]], num_steps: int) -> list[StepTime]:
    """Return the times of a run's training steps out of the lines of its metrics.jsonl.

    Raises InfrastructureError where a step is missing or was skipped: its time would say nothing.
    """
    lines = {row["step"]: row for row in rows if "time/step_s" in row and not row.get("superseded")}
    missing = sorted(set(range(1, num_steps + 1)) - set(lines))
    if missing:
        raise InfrastructureError(f"the run's metrics.jsonl holds no times of the steps {missing} of {num_steps}")
    steps = []
    for number in range(1, num_steps + 1):
        line = lines[number]
        if line["train/skipped"]:
            raise InfrastructureError(f"step {number} was skipped for a loss that was not finite: it cannot be timed")
        steps.append(
            StepTime(line["time/step_s"], line["time/generate_s"], line["time/train_s"], int(line["rollout/tokens"]))
        )
    return steps


def name_of(config: Config) -> str:
    """Return the table's name of our loop."""
    return "ours, synchronous" if config.max_staleness == 0 else f"ours, max_staleness {config.max_staleness}"


def our_settings(config: Config) -> dict[str, Any]:
    """Return what shapes our step, as dotted keys, and the precision in words."""
    tree = config.model_dump(mode="json")
    top = ("seed", "groups_per_step", "group_size", "max_staleness")
    found = {key: tree[key] for key in top}
    found |= {f"{section}.{key}": value for section in SECTIONS for key, value in tree[section].items()}
    found |= {"template.stop": config.template.stop, "rewards": list(config.rewards.active)}
    return found | {
        "cpus": os.cpu_count(),
        "master weights": "float32, moments too",
        "compute": f"{config.learners.dtype} in training",
        "generation": f"vLLM, {config.actors.dtype}",
    }


def run_logged(command: Sequence[str], log: Path, timeout_s: float) -> None:
    """Run a command with its output in `log`; whatever happens, it has ended on return.

    Raises InfrastructureError with the log's last lines where it fails, WaitTimeoutError where it takes too long.
    """
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**ENVIRONMENT, **os.environ})
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise WaitTimeoutError(f"{' '.join(command[1:3])} (its output: {log})", timeout_s) from error
        finally:
            _end(process)
    if status != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
        raise InfrastructureError(f"{' '.join(command[1:3])} ended with {status}; the end of {log}:\n{tail}")


def _end(process: subprocess.Popen[Any]) -> None:
    """Ask a process to end (a run of ours then stops its Ray runtime), and kill it where it does not."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    if process.poll() is None:
        process.kill()
        process.wait(STOP_TIMEOUT_S)


def main() -> None:
    """Time our loop once and write its steps."""
    parser = argparse.ArgumentParser(description="Time a training step of our loop.")
    parser.add_argument("--out", type=Path, default=Path("bench/ours.json"))
    parser.add_argument("words", nargs="*", help="config words, such as max_staleness=1; also model=… and max_tokens=…")
    options = parser.parse_args()
    try:
        times = run_ours(options.words, options.out.with_suffix(".log"))
    except (UserError, InfrastructureError) as error:
        raise SystemExit(f"bench: {error}") from error
    times.write(options.out)
    print(f"bench: {times.name}: median {times.median_s:.2f} s a step, {times.median_tokens:,.0f} tokens")
    print(f"bench: wrote {options.out}")


if __name__ == "__main__":
    main()
