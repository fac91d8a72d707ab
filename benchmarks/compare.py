"""The bench: TRL's step, then our synchronous one, then our asynchronous one, on this machine in turn.

    python -m benchmarks.compare
    python -m benchmarks.compare model=models/tiny-random max_tokens=32 steps=5

Config words go to all three; those of `--asynchronous` only to our asynchronous run. Prints one table and all
settings, and writes them with every step's times to bench/step.json. The status is 0 whether the target is met or not.
"""

import argparse
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.our_step import TIMEOUT_S, run_logged, run_ours
from benchmarks.results import LEGEND, SystemTimes, compared, table_text, target_text
from benchmarks.workload import WARM_UP_STEPS, bench_config
from launch.files import write_json
from launch.manifest import git_state, now, versions
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, UserError

SYNCHRONOUS = ("max_staleness=0",)
ASYNCHRONOUS = "max_staleness=1 actors.threads=1 learners.threads=1"
"""Generation and training run at the same time: each gets a core, where the synchronous ones take turns on two."""


def run_all(argv: Sequence[str], asynchronous: Sequence[str], folder: Path, timeout_s: float) -> list[SystemTimes]:
    """Run the three in turn, each in processes of its own that end before the next starts; logs go to `folder`."""
    for words in ([*argv, *SYNCHRONOUS], [*argv, *asynchronous]):
        bench_config(words)  # a mistake in the words shows now, not after TRL's minutes
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "trl.json"
    result.unlink(missing_ok=True)
    print(f"bench: TRL (output: {folder / 'trl.log'})", flush=True)
    command = [sys.executable, "-m", "benchmarks.trl_step", "--out", str(result), *argv]
    run_logged(command, folder / "trl.log", timeout_s)
    systems = [SystemTimes.read(result)]
    for name, words in (("synchronous", SYNCHRONOUS), ("asynchronous", asynchronous)):
        print(f"bench: ours, {name} (output: {folder / f'{name}.log'})", flush=True)
        systems.append(run_ours([*argv, *words], folder / f"{name}.log", timeout_s))
    return systems


def machine() -> dict[str, Any]:
    """Return what the times depend on: CPU, cores, load before the start, versions, code revision."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "started": now(),
        "cpu": names[0] if names else platform.processor() or "unknown",
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else None,
        "load_before": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "git": git_state(None),
        "versions": versions(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def workload_text(config: Config) -> str:
    """Return in words what every system was given."""
    measured = config.steps - WARM_UP_STEPS
    return (
        f"{Path(config.model.path).name}, {config.groups_per_step} prompts x {config.group_size} samples a step, up to "
        f"{config.sampling.max_tokens} new tokens, temperature {config.sampling.temperature:g}, stop at "
        f"{config.template.stop!r}, lr {config.optimizer.lr:g};\n{measured} measured steps after {WARM_UP_STEPS} of "
        "warm-up, the same prompts in the same order, float32 master weights, "
        f"{config.learners.dtype} compute"
    )


def settings_text(name: str, settings: Mapping[str, Any]) -> str:
    """Return settings one a line under a heading."""
    return "\n".join([f"{name}:", *(f"  {key}: {value}" for key, value in settings.items())])


def differences(settings: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from those of `base`."""
    return {key: value for key, value in settings.items() if base.get(key) != value}


def report_text(config: Config, systems: Sequence[SystemTimes], rows: Sequence[dict[str, Any]]) -> str:
    """Return all that the bench prints at its end."""
    trl, synchronous, asynchronous = systems
    changed = differences(asynchronous.settings, synchronous.settings)
    return "\n\n".join(
        [
            settings_text(trl.name, trl.settings),
            settings_text(synchronous.name, synchronous.settings),
            settings_text(f"{asynchronous.name}, where it differs from the synchronous run", changed),
            workload_text(config),
            table_text(rows),
            fill(LEGEND, 110),
            target_text(rows),
        ]
    )


def main() -> None:
    """Run the bench, print table and settings, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description="Our training step against TRL's on this machine."
    )
    parser.add_argument("--out", type=Path, default=Path("bench/step.json"), help="default: bench/step.json")
    parser.add_argument(
        "--asynchronous",
        default=ASYNCHRONOUS,
        metavar="WORDS",
        help=f"of our asynchronous run (default: {ASYNCHRONOUS})",
    )
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S, help="of each run (default: 3600)")
    parser.add_argument("words", nargs="*", help="config words; also model=…, max_tokens=…; steps=… counts the warm-up")
    options = parser.parse_intermixed_args()
    # Ends through `run_logged`, which stops the run that is under way.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    before = machine()
    try:
        config = bench_config(options.words)
        systems = run_all(options.words, options.asynchronous.split(), options.out.parent, options.timeout_s)
    except (UserError, InfrastructureError) as error:
        raise SystemExit(f"bench: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("bench: interrupted") from None
    rows = compared(systems[0], systems[1:])
    print(f"\n{report_text(config, systems, rows)}\n")
    write_json(
        options.out,
        {"machine": before, "workload": workload_text(config), "rows": rows, "systems": [asdict(s) for s in systems]},
    )
    print(f"bench: wrote {options.out}")


if __name__ == "__main__":
    main()
