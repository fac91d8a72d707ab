"""Kill a run at random moments, again and again, and audit what it left.

    python -m benchmarks.chaos
    python -m benchmarks.chaos --kills 10 --seed 3 --steps 60

A run of the small model with two rollout Ray actors, two reward replicas and two learner ranks. Killed with SIGKILL: a
rollout Ray actor, its engine's process, a reward replica, a learner rank, and the whole job (then the same command goes
on). Every five kills hit each of them once, in an order and at moments drawn by seed. Writes bench/chaos.json and
bench/chaos.md; the status is 0 where everything holds that must hold.
"""

import argparse
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos_audit import Evidence, Verdict, audit, table
from benchmarks.chaos_run import TARGETS, Kill, Soak, SoakError, kill_plan
from benchmarks.compare import machine
from launch.files import write_json, write_text_atomic
from launch.setup_models import TINY_CLASSIFIER, TINY_POLICY
from lwz_ray.errors import InfrastructureError, UserError

STEPS_PER_KILL = 8
OVERLAP = 0.25
NAMES = {
    "rollout": "rollout Ray actor", "engine": "its engine", "reward": "reward replica", "learner": "learner rank",
    "job": "whole job",
}  # fmt: skip
WORDS = (
    "run=smoke_cpu",
    "max_staleness=1",
    "on_stale=wait",
    "run.resume=auto",
    "run.checkpoint_every_steps=3",
    "sampling.max_tokens=24",
    "eval.num_prompts=2",
    "actors.replicas=2",
    "actors.num_cpus=0.4",  # Ray CPUs: 2 * 0.4 + 2 * 0.1 + 2 * 0.4 of 2
    "rewards.replicas=2",
    "learners.ranks=2",
    # Kills are told by Ray and by the engines at once; hangs have a test of their own.
    "failures.heartbeat_every_s=1",
    "failures.heartbeat_timeout_s=40",
    "failures.max_sample_attempts=20",
    "failures.max_rollout_losses=1000",
    "failures.max_reward_losses=1000",
    "failures.max_learner_restarts=1000",
    "tracking.wandb=false",
    "tracking.progress=false",
)


def run_words(models: Path, folder: Path, steps: int, more: Sequence[str]) -> list[str]:
    """Return the command's words; folder: the run's, which need not exist."""
    return [
        *WORDS,
        f"model.path={models / TINY_POLICY}",
        f"rewards.writing.path={models / TINY_CLASSIFIER}",
        f"run.dir={folder.parent.resolve()}",
        f"run.name={folder.name}",
        f"steps={steps}",
        *more,
    ]


def soak(run: Soak, kills: int, seed: int, overlap: float, limit_s: float) -> None:
    """Start the run, kill as planned, and wait for its end; raises SoakError. No process of it is left."""
    began = time.monotonic()
    try:
        run.start()
        for target in kill_plan(kills, seed):
            if time.monotonic() - began > limit_s:
                raise SoakError(f"{len(run.kills)} of {kills} kills after {limit_s / 60:g} minutes (--minutes)")
            if not run.strike(target, overlap):
                break
        run.finish()
    finally:
        run.close()
    if len(run.kills) < kills:
        raise SoakError(f"the run came to its end after {len(run.kills)} of {kills} kills: give it more --steps")
    if run.left_over:
        raise SoakError(f"processes outlived the run: {run.left_over}")


def kill_rows(kills: Sequence[Kill]) -> list[dict[str, Any]]:
    """Return one row a target: kills, and the median and longest seconds until noticed and until the next step."""
    rows = []
    for target in TARGETS:
        mine = [k for k in kills if k.target == target]
        row: dict[str, Any] = {"target": target, "kills": len(mine), "waited": sum(k.waited for k in mine)}
        for name in ("noticed_s", "step_s"):
            seconds = [s for k in mine if (s := getattr(k, name)) is not None]
            row[f"{name}_median"] = statistics.median(seconds) if seconds else None
            row[f"{name}_max"] = max(seconds) if seconds else None
        rows.append(row)
    return rows


def kill_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the kills as a Markdown table."""
    lines = [
        "| killed | kills | s until told, median (longest) | s until the next step, median (longest) |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = [NAMES[row["target"]], str(row["kills"])]
        for name in ("noticed_s", "step_s"):
            middle, longest = row[f"{name}_median"], row[f"{name}_max"]
            cells.append("–" if middle is None else f"{middle:.1f} ({longest:.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(run: Soak, verdicts: Sequence[Verdict], wall_s: float) -> str:
    """Return what the soak did and found, as Markdown."""
    overlapped = sum(not k.waited for k in run.kills)
    head = (
        f"{len(run.kills)} kills in {wall_s / 60:.1f} min, {run.starts} starts of the command; after {overlapped} of "
        "the kills the next came without waiting."
    )
    return "\n\n".join([head, kill_table(kill_rows(run.kills)), table(verdicts)])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help=f"of the run (default: {STEPS_PER_KILL} for each kill)")
    parser.add_argument("--minutes", type=float, default=90.0, help="for all kills (default: 90)")
    parser.add_argument(
        "--overlap", type=float, default=OVERLAP, help=f"share of kills that do not wait for recovery ({OVERLAP})"
    )
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--out", type=Path, default=Path("bench/chaos.json"))
    parser.add_argument("words", nargs="*", help="config words, which win over the soak's own")
    options = parser.parse_intermixed_args(argv)
    if options.kills < 1:
        parser.error(f"--kills {options.kills}: needs 1 or more")
    options.steps = options.steps or STEPS_PER_KILL * options.kills
    return options


def main() -> None:
    """Soak, audit, print and write the results; exit with 1 where something does not hold."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    before, began = machine(), time.monotonic()
    folder = options.out.parent / "chaos-run"
    shutil.rmtree(folder, ignore_errors=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    log = options.out.with_suffix(".log")
    log.unlink(missing_ok=True)
    words = run_words(options.models.resolve(), folder, options.steps, options.words)
    run = Soak(words, folder, log, options.seed, lambda text: print(f"chaos: {text}", flush=True))
    try:
        soak(run, options.kills, options.seed, options.overlap, 60 * options.minutes)
        verdicts = audit(Evidence.read(folder), run.noticed)
    except (UserError, InfrastructureError) as error:
        raise SystemExit(f"chaos: {error}\nchaos: {len(run.kills)} kills so far; run folder: {folder}") from error
    wall_s = time.monotonic() - began
    text = report(run, verdicts, wall_s)
    print(f"\n{text}\n")
    found = {
        "machine": before, "seed": options.seed, "words": words, "wall_s": wall_s, "starts": run.starts,
        "kills": [asdict(k) for k in run.kills], "rows": kill_rows(run.kills), "audit": [asdict(v) for v in verdicts],
    }  # fmt: skip
    write_json(options.out, found)
    write_text_atomic(options.out.with_suffix(".md"), text + "\n")
    print(f"chaos: wrote {options.out} and {options.out.with_suffix('.md')}")
    if any(v.violations for v in verdicts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
