"""What the dispatch of rollouts buys: longest first, routing by free cache and cache-steered concurrency, each and all.

    python -m benchmarks.dispatch
    python -m benchmarks.dispatch --real ends --groups 24
    python -m benchmarks.dispatch --speed bench/dispatch.json --groups 64 --max-num-seqs 64 --out bench/dispatch64.json

Asks two vLLM engines on one core each for a batch of groups of mixed requested lengths, with a KV cache too small for
`--max-num-seqs` of them. First it measures an engine's speed; then it runs the batch on the real engines, one way to
dispatch after the other (`--real`: all eight; the ends; or each choice alone, between them); then it runs many random
batches through simulated engines of that speed, in virtual time and through the same pool. Prints Markdown tables and
writes everything to bench/dispatch.json.
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import machine
from benchmarks.dispatch_real import RealEngines
from benchmarks.dispatch_simulation import JumpingLoop, SimulatedEngine, Speed
from benchmarks.dispatch_work import BenchEngine, Job, lengths_of, make_jobs, run_batch, variants
from launch.files import read_json, write_json

ENGINES = ("a", "b")
COLUMNS = {
    "makespan_s": "makespan, s",
    "ratio": "ratio",
    "idle_s": "one engine idle, s",
    "group_s": "a group complete, s",
    "preemptions": "preemptions",
    "again": "computed again, tokens",
}


async def simulate(jobs: Sequence[Job], speed: Speed, options: argparse.Namespace, settings: Any) -> dict[str, float]:
    """Run one batch on simulated engines."""
    lengths = lengths_of(jobs)
    engines = {
        name: SimulatedEngine(speed, lengths, options.cache_tokens, options.block_tokens, options.max_num_seqs)
        for name in ENGINES
    }
    steps = [asyncio.create_task(engine.run()) for engine in engines.values()]
    bench = {name: BenchEngine(engine.stream, engine.load) for name, engine in engines.items()}
    found = await run_batch(jobs, bench, settings, options.heartbeat_s)
    for task in steps:
        task.cancel()
    await asyncio.gather(*steps, return_exceptions=True)
    return found | {"again": float(sum(engine.num_computed_again for engine in engines.values()))}


def simulate_all(speed: Speed, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Return, for each way to dispatch, what each random batch took."""
    found: dict[str, list[dict[str, float]]] = {}
    for name, settings in variants(options.max_num_seqs, options.cache_target).items():
        found[name] = []
        for seed in range(1, options.batches + 1):
            with asyncio.Runner(loop_factory=JumpingLoop) as runner:
                found[name].append(runner.run(simulate(jobs_of(options, seed), speed, options, settings)))
    return found


async def measure(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Start the engines, measure their speed and run the batch on them; fills `found` as it goes."""
    async with RealEngines(options, len(ENGINES)) as engines:
        options.cache_tokens, options.block_tokens = engines.cache_tokens, engines.block_tokens
        decodes, prefills = await engines.measure_speed()
        found["decodes"], found["prefills"] = decodes, prefills
        found["speed"] = Speed.fitted(decodes, prefills).as_dict()
        ways = variants(options.max_num_seqs, options.cache_target)
        names = chosen(list(ways), options.real)
        jobs = jobs_of(options, 1)
        bench = engines.bench(ENGINES, lengths_of(jobs))
        found["real"] = {name: [] for name in names}
        for _ in range(options.repeats):
            for name in names:
                found["real"][name].append(await run_batch(jobs, bench, ways[name], options.heartbeat_s))
                print(f"real: {name}: {found['real'][name][-1]}", flush=True)
                write_json(options.out, found)


def chosen(names: list[str], real: str) -> list[str]:
    """Return which of the eight run on real engines; `each` changes one of the three choices at a time, then all."""
    return [names[i] for i in {"all": range(8), "each": (0, 4, 2, 1, 7), "ends": (0, 7), "none": ()}[real]]


def jobs_of(options: argparse.Namespace, seed: int) -> list[Job]:
    most = options.max_length_tokens - 64
    return make_jobs(options.groups, options.group_size, tuple(options.words), most, seed)


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return means over runs as a Markdown table; the ratio's spread is the standard deviation over runs."""
    first = next(iter(found.values()))
    columns = {key: head for key, head in COLUMNS.items() if key == "ratio" or key in first[0]}
    lines = ["| dispatch | " + " | ".join(columns.values()) + " |", "|---" + "|---:" * len(columns) + "|"]
    for name, runs in found.items():
        ratios = [run["makespan_s"] / base["makespan_s"] for run, base in zip(runs, first, strict=True)]
        cells = []
        for key in columns:
            if key == "ratio":
                spread = f" ± {statistics.stdev(ratios):.2f}" if len(ratios) > 1 else ""
                cells.append(f"{statistics.mean(ratios):.2f}{spread}")
            else:
                digits = 1 if key.endswith("_s") else 0
                cells.append(f"{statistics.mean(run[key] for run in runs):,.{digits}f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="benchmarks.dispatch", description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--model", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    made.add_argument("--groups", type=int, default=16)
    made.add_argument("--group-size", type=int, default=4)
    made.add_argument("--words", type=int, nargs=2, default=(20, 400), help="shortest and longest request")
    made.add_argument("--max-num-seqs", type=int, default=24, help="of one engine")
    made.add_argument("--kv-cache-mib", type=int, default=64, help="of one engine")
    made.add_argument("--max-length-tokens", type=int, default=1024)
    made.add_argument("--cache-target", type=float, default=0.9)
    made.add_argument("--cache-tokens", type=int, default=None, help="of a simulated engine; default: as measured")
    made.add_argument("--block-tokens", type=int, default=None, help="of a simulated engine; default: as measured")
    made.add_argument("--heartbeat-s", type=float, default=1.0)
    made.add_argument("--real", choices=("all", "each", "ends", "none"), default="each")
    made.add_argument("--repeats", type=int, default=1, help="of the real runs")
    made.add_argument("--batches", type=int, default=40, help="random batches that are simulated")
    made.add_argument("--speed", type=Path, default=None, help="an earlier result whose measured speed is taken")
    made.add_argument("--out", type=Path, default=Path("bench/dispatch.json"))
    return made


def checked(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; what cannot be run ends the process with one line, before an engine starts."""
    options = parser().parse_args(arguments)
    for name in ("groups", "group_size", "max_num_seqs", "repeats", "batches"):
        if (number := getattr(options, name)) < 1:
            parser().error(f"--{name.replace('_', '-')} {number}: needs 1 or more")
    if not 0 < options.words[0] <= options.words[1]:
        parser().error(
            f"--words {options.words[0]} {options.words[1]}: needs two numbers above 0, the smaller one first"
        )
    if options.speed is None and not options.model.is_dir():
        parser().error(f"--model {options.model}: there is no such folder")
    if options.speed is not None and not options.speed.is_file():
        parser().error(f"--speed {options.speed}: there is no such file; run without --speed first")
    return options


def main() -> None:
    options = checked(sys.argv[1:])
    found: dict[str, Any] = {"machine": machine(), "command": sys.argv[1:], "real": {}}
    if options.speed is None:
        asyncio.run(measure(options, found))
        found |= {"cache_tokens": options.cache_tokens, "block_tokens": options.block_tokens}
    else:
        earlier = read_json(options.speed)
        found |= {k: earlier[k] for k in ("speed", "decodes", "prefills", "cache_tokens", "block_tokens")}
        options.cache_tokens = options.cache_tokens or found["cache_tokens"]
        options.block_tokens = options.block_tokens or found["block_tokens"]
    write_json(options.out, found)
    speed = Speed(**found["speed"])
    found["simulated"] = simulate_all(speed, options)
    write_json(options.out, found)
    num_tokens = sum(sum(job.lengths) for job in jobs_of(options, 1))
    print(
        f"\n{options.groups} groups of {options.group_size}, {num_tokens:,} tokens in the first batch; two engines ",
        end="",
    )
    print(f"with {options.cache_tokens:,} tokens of cache each, at most {options.max_num_seqs} sequences; {speed}")
    if found["real"]:
        print(f"\nReal engines, the first batch:\n\n{table(found['real'])}")
    print(f"\nSimulated, means of {options.batches} random batches:\n\n{table(found['simulated'])}")


if __name__ == "__main__":
    main()
