"""Peak memory and time of one forward and backward pass over one long sample, ours against plain transformers.

    python -m benchmarks.learner
    python -m benchmarks.learner --tokens 1024 2048 --shallow-tokens

Plain: transformers' model, sdpa attention, its own loss over the logits of every token. Ours: the learner's network
and GRPO objective, log-probabilities and entropies in chunks, every layer checkpointed; without a backend, so that
both hold the same weights and gradients in the same dtype. Every point is a process of its own. Memory is the peak of
resident memory less what was resident right before the pass: imports, model and gradients. Writes bench/learner.json.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import machine
from benchmarks.learner_parts import Case, measure, plain_bytes, write_shallow_model
from benchmarks.memory_reading import available_bytes
from benchmarks.our_step import run_logged
from launch.compose import compose
from launch.files import read_json, write_json
from launch.memory import GIB
from launch.setup_models import SMOL
from launch.shapes import shape_of
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError

TOKENS = (1024, 2048, 4096, 8192)
SHALLOW_TOKENS = (8192, 16384, 32768)
SHALLOW_LAYERS = 2
TARGET_TOKENS, TARGET_SHARE = 8192, 1 / 7
MARGIN = 0.9
"""Of the available memory: a pass that would need more is not started."""


def points(options: argparse.Namespace, shallow: Path) -> list[Case]:
    """Return every case, short before long, ours before plain."""
    models = [(str(options.model), options.tokens), (str(shallow), options.shallow_tokens)]
    return [
        Case(system, model, tokens, options.dtype, options.threads)
        for model, sizes in models
        for tokens in sorted(sizes)
        for system in ("ours", "plain")
    ]


def run_point(case: Case, folder: Path, index: int, limit_s: float) -> dict[str, Any]:
    """Measure one case in a child process; return its numbers, or why there are none under `not_run`."""
    need = plain_bytes(shape_of("--model", case.model), case.tokens, case.dtype)
    if case.system == "plain" and need > MARGIN * available_bytes():
        return {
            "not_run": f"needs about {need / GIB:.1f} GiB above the model, "
            f"{available_bytes() / GIB:.1f} GiB are available"
        }
    result = folder / f"learner-{index}.json"
    result.unlink(missing_ok=True)
    words = ["--case", json.dumps(asdict(case)), "--out", str(result)]
    try:
        run_logged([sys.executable, "-m", "benchmarks.learner", *words], result.with_suffix(".log"), limit_s)
    except WaitTimeoutError:
        return {"not_run": f"took more than {limit_s:g} s (--limit-s)"}
    return read_json(result)


def run_all(cases: Sequence[Case], folder: Path, limit_s: float) -> list[dict[str, Any]]:
    """Measure every case in turn; one that is longer than a case that ran out of time is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    late: dict[tuple[str, str], int] = {}
    for index, case in enumerate(cases):
        name = f"{case.system}, {layers_of(case.model)} layers, {case.tokens:,} tokens"
        print(f"bench: {name} (load {os.getloadavg()[0]:.1f})", flush=True)
        shorter = late.get((case.system, case.model))
        if shorter is not None:
            seen: dict[str, Any] = {"not_run": f"{shorter:,} tokens took more than {limit_s:g} s already"}
        else:
            seen = run_point(case, folder, index, limit_s)
            if "more than" in seen.get("not_run", ""):
                late[case.system, case.model] = case.tokens
        said = seen.get("not_run")
        done = f"not run: {said}" if said else f"{seen['bytes'] / GIB:.2f} GiB, {seen['seconds']:.1f} s"
        print(f"bench: {name}: {done}", flush=True)
        found.append({**asdict(case), "layers": layers_of(case.model), **seen})
    return found


def layers_of(model: str) -> int:
    return shape_of("--model", model).num_layers


def rows_of(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a model and length, with both systems' GiB and seconds, None where a point was not run."""
    by_point: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for point in found:
        by_point.setdefault((point["layers"], point["tokens"]), {})[point["system"]] = point
    rows: list[dict[str, Any]] = []
    for (layers, tokens), systems in by_point.items():
        row: dict[str, Any] = {"layers": layers, "tokens": tokens}
        for system in ("plain", "ours"):
            point = systems[system]
            row[f"{system}_gib"] = point["bytes"] / GIB if "bytes" in point else None
            row[f"{system}_s"] = point.get("seconds")
        plain, ours = row["plain_gib"], row["ours_gib"]
        row["ratio"] = None if plain is None or ours is None else plain / ours
        shorter = next((r for r in reversed(rows) if r["layers"] == layers and r["ours_gib"] is not None), None)
        row["growth_gib"] = None
        if shorter is not None and ours is not None:
            row["growth_gib"] = (ours - shorter["ours_gib"]) * 1024 / (tokens - shorter["tokens"])
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| layers | tokens | plain, GiB | ours, GiB | plain / ours | plain, s | ours, s | ours, GiB per 1,024 more |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = (("plain_gib", 2), ("ours_gib", 2), ("ratio", 1), ("plain_s", 1), ("ours_s", 1), ("growth_gib", 3))
    for row in rows:
        cells = [str(row["layers"]), f"{row['tokens']:,}"]
        cells += ["–" if row[key] is None else f"{row[key]:.{digits}f}" for key, digits in keys]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def attention_cost(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return (a, b) of seconds = a tokens + b pairs, pairs = tokens (tokens + 1) / 2, by least relative squares.

    points: (tokens, seconds), at least two lengths. b / a is `learners.attention_cost`.

    >>> a, b = attention_cost([(100, 0.1 + 5050e-6), (300, 0.3 + 45150e-6)])
    >>> round(a, 9), round(b, 12)
    (0.001, 1e-06)
    """
    tokens = np.array([t for t, _ in points], dtype=np.float64)
    seconds = np.array([s for _, s in points], dtype=np.float64)
    columns = np.stack([tokens, tokens * (tokens + 1) / 2], axis=1) / seconds[:, None]
    (a, b), *_ = np.linalg.lstsq(columns, np.ones(len(points)), rcond=None)
    return float(a), float(b)


def cost_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the measured cost of attention of every model that ran at two lengths or more."""
    lines = []
    for layers in sorted({r["layers"] for r in rows}, reverse=True):
        seen = [(r["tokens"], r["ours_s"]) for r in rows if r["layers"] == layers and r["ours_s"] is not None]
        if len(seen) < 2:
            lines.append(f"{layers} layers: attention_cost needs two lengths, {len(seen)} ran")
            continue
        a, b = attention_cost(seen)
        if a <= 0 or b <= 0:
            lines.append(
                f"{layers} layers: these lengths are too short, or the machine too busy, to tell attention_cost"
            )
            continue
        lines.append(
            f"{layers} layers: ours takes {a * 1e3:.3f} ms a token + {b * 1e9:.2f} ns a query-key pair: "
            f"learners.attention_cost={b / a:.3g}"
        )
    return "\n".join(lines)


def verdict(rows: Sequence[dict[str, Any]], layers: int) -> str:
    """Return whether the target is met; it is judged where both systems ran at its length."""
    said = f"target (at {TARGET_TOKENS:,} tokens at most 1/7 of plain logits' peak above the model)"
    row = next((r for r in rows if r["layers"] == layers and r["tokens"] == TARGET_TOKENS), None)
    if row is None or row["ratio"] is None:
        return f"{said}: not judged, {TARGET_TOKENS:,} tokens did not run for both"
    met = "met" if 1 / row["ratio"] <= TARGET_SHARE else "NOT met"
    return f"{said}: 1/{row['ratio']:.1f}, {met}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learner", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", type=Path, default=Path("models") / SMOL)
    parser.add_argument("--tokens", type=int, nargs="*", default=list(TOKENS), help="lengths with --model")
    parser.add_argument(
        "--shallow-tokens", type=int, nargs="*", default=list(SHALLOW_TOKENS),
        help=f"lengths with a random model of the same sizes and {SHALLOW_LAYERS} layers",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit-s", type=float, default=900.0, help="of each point (default: 900)")
    parser.add_argument("--out", type=Path, default=Path("bench/learner.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    """Measure every point, print the table, write the JSON."""
    options = parse(sys.argv[1:])
    if options.case is not None:
        write_json(options.out, measure(Case(**json.loads(options.case)), compose([]).algorithm))
        return
    before = machine()
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_shallow_model(options.model, Path(folder), SHALLOW_LAYERS, max([*options.shallow_tokens, 8192]))
            found = run_all(points(options, Path(folder)), options.out.parent, options.limit_s)
    except (UserError, InfrastructureError) as error:
        raise SystemExit(f"bench: {error}") from error
    rows = rows_of(found)
    print(f"\none sample, {options.dtype}, {options.threads} threads; GiB above imports, model and gradients\n")
    print(f"{table(rows)}\n\n{cost_text(rows)}")
    print(verdict(rows, layers_of(str(options.model))))
    for point in found:
        if "not_run" in point:
            print(
                f"not run: {point['system']}, {point['layers']} layers, {point['tokens']:,} tokens: {point['not_run']}"
            )
    write_json(options.out, {"machine": before, "points": found, "rows": rows})
    print(f"bench: wrote {options.out}")


if __name__ == "__main__":
    main()
