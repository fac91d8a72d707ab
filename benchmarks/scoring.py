"""Scored texts a second: the reward pool with both engines, 1 and 2 replicas, against a plain transformers loop.

    python -m benchmarks.scoring
    python -m benchmarks.scoring --model models/my-reward-model --spread log --texts 96

Every system scores the same texts of mixed lengths in a process of its own, with the same number of threads in total,
one after the other. Prints a Markdown table and writes it with all times to bench/scoring.json.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.compare import machine
from benchmarks.our_step import run_logged
from benchmarks.scoring_parts import REQUEST, PlainLoop, make_scorer, mixed_texts
from launch.files import read_json, write_json

PLAIN = "plain loop, batches of 8"
BASELINE_BATCH = 8
TARGET = 2.0
SYSTEMS: dict[str, dict[str, Any]] = {
    PLAIN: {"kind": "plain", "batch_size": BASELINE_BATCH},
    "plain loop, one at a time": {"kind": "plain", "batch_size": 1},
    "pool, transformers, 1 replica": {"kind": "pool", "engine": "transformers", "replicas": 1},
    "pool, transformers, 2 replicas": {"kind": "pool", "engine": "transformers", "replicas": 2},
    "pool, vLLM, 1 replica": {"kind": "pool", "engine": "vllm", "replicas": 1},
    "pool, vLLM, 2 replicas": {"kind": "pool", "engine": "vllm", "replicas": 2},
}
WARM_UP = 4
"""Texts scored before the clock starts, by every replica's engine."""


class Clock:
    """Measures wall time, and the CPU time of this process with all below it, Ray's included.

    CPU time says what the work costs where other programs share the machine and wall time says little. Threads that
    wait for each other spend it too, so it compares best with --threads 1.
    """

    def __init__(self) -> None:
        self._cpu, self._wall = self._cpu_s(), time.monotonic()

    def times(self) -> dict[str, float]:
        """Return the seconds since the start."""
        return {"seconds": time.monotonic() - self._wall, "cpu_seconds": self._cpu_s() - self._cpu}

    @staticmethod
    def _cpu_s() -> float:
        me = psutil.Process()
        total = 0.0
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


def score_plain(options: argparse.Namespace, system: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Time the plain loop in this process."""
    loop = PlainLoop(options.model, options.threads)
    size = system["batch_size"]
    loop.score([REQUEST] * WARM_UP, texts[:WARM_UP], size)
    clock = Clock()
    values = loop.score([REQUEST] * len(texts), texts, size)
    return {**clock.times(), "values": values, "dtype": loop.dtype}


async def score_pool(options: argparse.Namespace, system: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Time the pool on a local Ray runtime: every text is a request of its own, all are waiting from the start."""
    from launch.cluster import connect
    from launch.compose import compose
    from launch.places import Places
    from launch.reward_replicas import RewardReplicas
    from lwz_ray.failures import FailureLog

    replicas = system["replicas"]
    config = compose(
        [
            f"rewards.writing.path={options.model}",
            f"rewards.writing.engine={system['engine']}",
            f"rewards.writing.dtype={options.dtype}",
            f"rewards.writing.batch_size={BASELINE_BATCH}",
            f"rewards.writing.max_length_tokens={options.longest + 512}",
            "rewards.writing.memory_utilization=0.05",
            f"rewards.replicas={replicas}",
            f"rewards.threads={max(1, options.threads // replicas)}",
            "rewards.num_cpus=0.5",
        ]
    )
    connect(config)
    places = Places(config)
    workers = RewardReplicas(config, places, FailureLog({}))
    try:
        workers.begin([places.outside("rewards") for _ in range(replicas)])
        await workers.replicas.start()
        await workers.open()
        pool = workers.pool
        assert pool is not None
        for _ in range(replicas):
            await asyncio.gather(*(pool.score_one(REQUEST, t) for t in texts[: WARM_UP * replicas]))
        clock = Clock()
        scores = await asyncio.gather(*(pool.score_one(REQUEST, t) for t in texts))
        return {**clock.times(), "values": [s.value for s in scores], "dtype": options.dtype}
    finally:
        await workers.close()


def run_one(options: argparse.Namespace) -> None:
    """Time one system and write what was found."""
    from transformers import AutoTokenizer

    system = SYSTEMS[options.system]
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    texts = mixed_texts(tokenizer, options.texts, options.shortest, options.longest, options.spread)
    tokens = sum(len(tokenizer(t, add_special_tokens=False).input_ids) for t in texts)
    if system["kind"] == "plain":
        found = score_plain(options, system, texts)
    else:
        found = asyncio.run(score_pool(options, system, texts))
    write_json(options.out, {"system": options.system, "num_texts": len(texts), "num_tokens": tokens, **found})


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table; ratios are to the plain loop's texts a second."""
    base = next(f for f in found if f["system"] == PLAIN)
    lines = [
        "| system | s | texts/s | tokens/s | times the plain loop | CPU s | by CPU time | largest score difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        apart = max(abs(a - b) for a, b in zip(row["values"], base["values"], strict=True))
        lines.append(
            f"| {row['system']} | {row['seconds']:.1f} | {row['num_texts'] / row['seconds']:.2f} | "
            f"{row['num_tokens'] / row['seconds']:,.0f} | {base['seconds'] / row['seconds']:.2f} | "
            f"{row['cpu_seconds']:.1f} | {base['cpu_seconds'] / row['cpu_seconds']:.2f} | {apart:.3f} |"
        )
    return "\n".join(lines)


def run_all(options: argparse.Namespace, argv: Sequence[str]) -> list[dict[str, Any]]:
    """Run every chosen system in a child process, one after the other."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = []
    for index, name in enumerate(SYSTEMS):
        if options.only and name != PLAIN and not any(part in name for part in options.only):
            continue
        print(f"bench: {name}", flush=True)
        result = options.out.parent / f"scoring-{index}.json"
        result.unlink(missing_ok=True)
        words = [*argv, "--model", str(options.model), "--system", name, "--out", str(result)]
        command = [sys.executable, "-m", "benchmarks.scoring", *words]
        run_logged(command, result.with_suffix(".log"), options.timeout_s)
        found.append(read_json(result))
        seconds, cpu = found[-1]["seconds"], found[-1]["cpu_seconds"]
        print(f"bench: {seconds:.1f} s, {cpu:.1f} s of CPU, load {os.getloadavg()[0]:.1f}", flush=True)
    return found


def main() -> None:
    """Run the bench, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M with a random score head, made for this run")
    parser.add_argument("--base", type=Path, default=Path("models/SmolLM2-135M-Instruct"), help="of that default")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--shortest", type=int, default=50, help="tokens of the shortest text")
    parser.add_argument("--longest", type=int, default=1500, help="tokens of the longest text")
    parser.add_argument("--spread", choices=("uniform", "log"), default="uniform", help="of the lengths")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the pool")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="in total, of every system")
    parser.add_argument("--only", action="append", metavar="WORDS", help="systems whose name holds this; repeatable")
    parser.add_argument("--out", type=Path, default=Path("bench/scoring.json"))
    parser.add_argument("--timeout-s", type=float, default=1200.0, help="of each system")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system is not None:
        run_one(options)
        return
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            options.model = make_scorer(options.base, Path(folder))
        options.model = options.model.resolve()
        found = run_all(options, sys.argv[1:])
    settings = {k: str(v) for k, v in vars(options).items()}
    print(f"\n{options.texts} texts of {options.shortest} to {options.longest} tokens ({options.spread}), ", end="")
    print(f"{found[0]['num_tokens']:,} tokens in all, {options.threads} threads; the plain loop in {found[0]['dtype']}")
    print(f"\n{table(found)}\n")
    best = max(found[0]["seconds"] / row["seconds"] for row in found if row["system"].startswith("pool"))
    print(f"target (at least {TARGET:g} times the plain loop): {best:.2f}, {'met' if best >= TARGET else 'NOT met'}")
    write_json(options.out, {"machine": before, "settings": settings, "systems": found})


if __name__ == "__main__":
    main()
