"""Resident memory of driver, rollout actors, reward actors and learners over a long run: is it flat?

    python -m benchmarks.memory_curve
    python -m benchmarks.memory_curve --steps 400 max_staleness=2

A run of the small model through the front door; every step logs what each room's processes hold (`memory/*_mib`). After
warm-up a line is fitted through the median of all slopes between two steps (Theil and Sen), which single peaks do not
move. Flat: along the line memory changes by less than 5%. Writes bench/memory_curve.json, .md and .svg; the status is 0
where every room is flat.
"""

import argparse
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import machine
from benchmarks.our_step import run_logged
from launch.files import iter_json_lines, write_json, write_text_atomic
from launch.memory_watch import ROOM_OF
from launch.report_charts import Series, line_chart
from launch.setup_models import TINY_CLASSIFIER, TINY_POLICY
from lwz_ray.errors import InfrastructureError, UserError

STEPS, WARM_UP = 200, 40
FLAT = 0.05
"""Share by which memory may change after warm-up."""
WINDOW = 20
"""Steps at each end whose medians are compared."""
ROOMS = ("driver", *dict.fromkeys(ROOM_OF.values()))
WORDS = (
    "run=smoke_cpu",
    "max_staleness=1",
    "run.checkpoint_every_steps=20",
    "eval.num_prompts=2",
    "tracking.wandb=false",
    "tracking.progress=false",
)
POINTS = re.compile(r'<g class="s\d">.*?</g>')
STYLE = (
    "<style>.chart{font:11px sans-serif;background:#fff}.grid{stroke:#ddd}.axis{stroke:#444}.y{text-anchor:end}"
    ".x{text-anchor:middle}.s0{stroke:#1b6ca8;fill:#1b6ca8}"
    ".s1{stroke:#c0392b;fill:#c0392b}.s2{stroke:#27864a;fill:#27864a}.s3{stroke:#8e5ea2;fill:#8e5ea2}"
    "path.line{fill:none;stroke-width:1.5}</style>"
)


def theil_sen(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return (slope, intercept) of the line through the median slope between two points and the median rest.

    >>> theil_sen([0, 1, 2, 3, 4], [1.0, 3.0, 90.0, 7.0, 9.0])
    (2.0, 1.0)
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    first, second = np.triu_indices(len(x), k=1)
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    return slope, float(np.median(y - slope * x))


def rows_of(lines: Sequence[Mapping[str, Any]], warm_up: int) -> list[dict[str, Any]]:
    """Return one row a room with its memory after warm-up. lines: of metrics.jsonl, the surviving ones.

    Raises InfrastructureError where a room has no numbers: then nothing is known of it.
    """
    rows = []
    for room in ROOMS:
        points = [(r["step"], r[f"memory/{room}_mib"]) for r in lines if f"memory/{room}_mib" in r]
        points = [(step, value) for step, value in points if step > warm_up]
        if len(points) < 2 * WINDOW:
            raise InfrastructureError(
                f"memory/{room}_mib: {len(points)} steps after {warm_up} of warm-up, {2 * WINDOW} are needed"
            )
        steps, values = zip(*points, strict=True)
        slope, intercept = theil_sen(steps, values)
        at_first, at_last = (intercept + slope * s for s in (steps[0], steps[-1]))
        first, last = (float(np.median(part)) for part in (values[:WINDOW], values[-WINDOW:]))
        change = at_last / at_first - 1
        rows.append(
            {
                "room": room, "steps": len(points), "first_mib": first, "last_mib": last, "peak_mib": max(values),
                "ratio": last / first, "mib_per_100_steps": 100 * slope, "change": change, "flat": abs(change) < FLAT,
            }
        )  # fmt: skip
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        f"| processes | MiB, median of the first {WINDOW} steps after warm-up | of the last {WINDOW} | last / first | "
        "fitted, MiB per 100 steps | change along the fit | flat within 5% |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['room']} | {r['first_mib']:,.0f} | {r['last_mib']:,.0f} | {r['ratio']:.3f} | "
            f"{r['mib_per_100_steps']:+.1f} | {r['change']:+.1%} | {'yes' if r['flat'] else 'no'} |"
        )
    return "\n".join(lines)


def curve(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the curves of all rooms, relative to their value at the first step, as an SVG file."""
    series = []
    for room in ROOMS:
        points = [(int(r["step"]), r.get(f"memory/{room}_mib")) for r in lines]
        start = next(value for _, value in points if value is not None)
        series.append(Series(room, tuple((s, None if v is None else v / start) for s, v in points)))
    drawn = line_chart("resident memory relative to the first step", series)
    assert drawn is not None
    names = "".join(
        f'<text class="s{i}" x="{60 + 80 * i}" y="-4" stroke="none">{s.name}</text>' for i, s in enumerate(series)
    )
    lines_alone = POINTS.sub("", drawn)  # a picture in a page answers no pointer
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="760" '
    framed = lines_alone.replace("<svg ", head, 1).replace('viewBox="0 0 380 220"', 'viewBox="0 -16 380 236"', 1)
    return framed.replace(">", f">{STYLE}{names}", 1) + "\n"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Return a curve in one line of text, from the smallest to the greatest value.

    >>> sparkline([0.0, 1.0, 2.0, 7.0], width=4)
    '▁▂▃█'
    """
    blocks = "▁▂▃▄▅▆▇█"
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(width, len(values)))
    means = [float(part.mean()) for part in parts]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(blocks[round((m - low) / span * (len(blocks) - 1))] for m in means)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory_curve", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help=f"steps that are not judged (default: {WARM_UP})")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--timeout-s", type=float, default=5400.0)
    parser.add_argument("--out", type=Path, default=Path("bench/memory_curve.json"))
    parser.add_argument("words", nargs="*", help="config words, which win over the bench's own")
    options = parser.parse_intermixed_args(argv)
    if options.steps - options.warm_up < 2 * WINDOW:
        parser.error(
            f"--steps {options.steps} --warm-up {options.warm_up}: {2 * WINDOW} steps after warm-up are needed"
        )
    return options


def main() -> None:
    """Run, print the curves, write the results; exit with 1 where a room is not flat."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    before, folder = machine(), options.out.parent / "memory-run"
    shutil.rmtree(folder, ignore_errors=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    models = options.models.resolve()
    words = [
        *WORDS, f"model.path={models / TINY_POLICY}", f"rewards.writing.path={models / TINY_CLASSIFIER}",
        f"run.dir={folder.parent.resolve()}", f"run.name={folder.name}", f"steps={options.steps}", *options.words,
    ]  # fmt: skip
    try:
        log = options.out.with_suffix(".log")
        print(f"bench: {options.steps} steps (output: {log})", flush=True)
        run_logged([sys.executable, "-m", "lwz_ray.main", *words], log, options.timeout_s)
        lines = [r for r in iter_json_lines(folder / "metrics.jsonl") if not r.get("superseded")]
        rows = rows_of(lines, options.warm_up)
    except (UserError, InfrastructureError) as error:
        raise SystemExit(f"bench: {error}") from error
    for room in ROOMS:
        values = [r[f"memory/{room}_mib"] for r in lines if f"memory/{room}_mib" in r]
        print(f"{room:<9}{min(values):>8,.0f} MiB {sparkline(values)} {max(values):,.0f} MiB")
    text = f"{options.steps} steps, the first {options.warm_up} are warm-up.\n\n{table(rows)}\n"
    print(f"\n{text}")
    curves = {room: [r.get(f"memory/{room}_mib") for r in lines] for room in ROOMS}
    write_json(options.out, {"machine": before, "words": words, "rows": rows, "curves": curves})
    write_text_atomic(options.out.with_suffix(".md"), text)
    write_text_atomic(options.out.with_suffix(".svg"), curve(lines))
    print(f"bench: wrote {options.out} and its .md and .svg")
    if not all(row["flat"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
