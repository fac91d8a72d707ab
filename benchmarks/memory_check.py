"""Peak memory of learner ranks in real training steps, against what the plan predicts.

    python -m benchmarks.memory_check
    python -m benchmarks.memory_check --model models/tiny-random --only zero3

Every case runs its ranks in processes of their own: two training steps and a publication of the weights, on samples of
--tokens tokens. Measured is each rank's peak resident memory, less what was resident when its imports were done and no
model was loaded yet; the table shows the rank with the most. `in use` is measured with an allocator that gives freed
blocks back at once, `resident` with the system's, which keeps some for later. Predicted is the sum that `dry_run=true`
prints for the same config. Writes bench/memory.json.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import machine
from benchmarks.our_step import run_logged
from launch.compose import compose
from launch.files import read_json, write_json
from launch.memory import GIB
from launch.memory_learner import learner_estimate
from launch.setup_models import SMOL, TINY_POLICY
from launch.shapes import shape_of
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, UserError

CASES: dict[str, tuple[list[str], int]] = {
    "fsdp, 1 rank, 2 microbatches": (["learners=fsdp", "learners.ranks=1"], 2),
    "fsdp, 2 ranks": (["learners=fsdp", "learners.ranks=2"], 1),
    "fsdp, 2 ranks, 2 microbatches": (["learners=fsdp", "learners.ranks=2"], 2),
    "fsdp, 2 ranks, no checkpointing": (
        ["learners=fsdp", "learners.ranks=2", "learners.activation_checkpointing=false"],
        1,
    ),
    "zero1, 2 ranks": (["learners=deepspeed", "learners.ranks=2", "learners.zero_stage=1"], 1),
    "zero2, 2 ranks": (["learners=deepspeed", "learners.ranks=2", "learners.zero_stage=2"], 1),
    "zero3, 2 ranks": (["learners=deepspeed", "learners.ranks=2", "learners.zero_stage=3"], 1),
    "zero1, 1 rank, 2 microbatches": (["learners=deepspeed", "learners.ranks=1", "learners.zero_stage=1"], 2),
    "zero2, 1 rank, 2 microbatches": (["learners=deepspeed", "learners.ranks=1", "learners.zero_stage=2"], 2),
    "zero3, 1 rank, 2 microbatches": (["learners=deepspeed", "learners.ranks=1", "learners.zero_stage=3"], 2),
}
"""Name -> config words, microbatches of each rank."""
ALLOCATORS: dict[str, list[str]] = {"in use": ["MALLOC_MMAP_THRESHOLD_=262144"], "resident": []}
"""Environment of the ranks: with it, glibc maps every block of 256 KiB and more by itself and unmaps it when freed."""
STEPS = 2
"""The first makes the optimizer's moments, the second has them beside its activations."""


def case_config(name: str, model: str, tokens: int, dtype: str, words: Sequence[str]) -> Config:
    """Return the config of a case; one group of as many samples as the ranks have microbatches, two at least."""
    case_words, microbatches = CASES[name]
    ranks = next(int(w.partition("=")[2]) for w in case_words if w.startswith("learners.ranks="))
    sizes = [
        f"model.path={model}",
        f"model.max_length_tokens={tokens}",
        f"learners.microbatch_tokens={tokens}",
        "data.max_prompt_tokens=32",
        f"sampling.max_tokens={tokens - 32}",
        "rewards.weights.writing=0",
        "rewards.writing.path=null",
        "run.checkpoint_async=false",
        f"learners.dtype={dtype}",
        "groups_per_step=1",
        f"group_size={ranks * microbatches}",
    ]
    return compose([*case_words, *sizes, *words])


def run_case(options: argparse.Namespace) -> None:
    """Run one case's ranks and write the peaks of each."""
    from torch.multiprocessing.spawn import start_processes

    from benchmarks.memory_rank import run_rank
    from learners.rendezvous import Rendezvous

    config = case_config(options.case, str(options.model), options.tokens, options.dtype, options.words)
    ranks, microbatches = config.learners.ranks, CASES[options.case][1]
    rank_files = [options.out.with_suffix(f".rank{r}") for r in range(ranks)]
    for file in rank_files:
        file.unlink(missing_ok=True)
    meeting = Rendezvous("127.0.0.1", config.learners.step_timeout_s)
    arguments = (config.model_dump(mode="json"), microbatches, meeting.address, [str(f) for f in rank_files])
    start_processes(run_rank, arguments, ranks, join=True, start_method="spawn")
    write_json(options.out, {"case": options.case, "ranks": [json.loads(f.read_text()) for f in rank_files]})


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every chosen case of every model with both allocators, one after the other."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in options.models:
        for name in CASES:
            if options.only and not any(part in name for part in options.only):
                continue
            config = case_config(name, str(model), options.tokens, options.dtype, options.words)
            predicted = learner_estimate(config, shape_of("--models", str(model)))
            row: dict[str, Any] = {"model": model.name, "case": name, "predicted": predicted.num_bytes}
            row["terms"] = {t.name: t.num_bytes for t in predicted.terms}
            for allocator, variables in ALLOCATORS.items():
                ranks = measured(options, model, name, variables)
                row[allocator] = max(r["bytes"] for r in ranks)
                row[f"{allocator}, by rank"] = ranks
            rows.append(row)
            said = ", ".join(f"{key} {row[key] / GIB:.2f} GiB" for key in ("predicted", *ALLOCATORS))
            print(f"bench: {model.name}, {name}: {said} (load {os.getloadavg()[0]:.1f})", flush=True)
    return rows


def measured(options: argparse.Namespace, model: Path, name: str, variables: Sequence[str]) -> list[dict[str, Any]]:
    """Run one case in a child process; return what each rank saw."""
    result = options.out.parent / f"memory-{model.name}-{list(CASES).index(name)}.json"
    result.unlink(missing_ok=True)
    words = ["--model", str(model), "--case", name, "--tokens", str(options.tokens), "--dtype", options.dtype]
    command = ["env", *variables, sys.executable, "-m", "benchmarks.memory_check", *words, "--out", str(result)]
    run_logged([*command, *options.words], result.with_suffix(".log"), options.timeout_s)
    return read_json(result)["ranks"]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| model | learners | predicted, GiB | in use, GiB | predicted / in use | resident, GiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        gib = {key: row[key] / GIB for key in ("predicted", *ALLOCATORS)}
        lines.append(
            f"| {row['model']} | {row['case']} | {gib['predicted']:.2f} | {gib['in use']:.2f} | "
            f"{gib['predicted'] / gib['in use']:.2f} | {gib['resident']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cases, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory_check", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--models", type=Path, nargs="+", default=[Path("models") / TINY_POLICY, Path("models") / SMOL])
    parser.add_argument("--tokens", type=int, default=2048, help="of each microbatch (default: 2048)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--only", action="append", metavar="WORDS", help="cases whose name holds this; repeatable")
    parser.add_argument("--out", type=Path, default=Path("bench/memory.json"))
    parser.add_argument("--timeout-s", type=float, default=300.0, help="of each case (default: 300)")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "words", nargs="*", help="config words of every case, such as learners.logprob_chunk_tokens=256"
    )
    options = parser.parse_intermixed_args()
    if options.case is not None:
        run_case(options)
        return
    before = machine()
    try:
        rows = run_all(options)
    except (UserError, InfrastructureError) as error:
        raise SystemExit(f"bench: {error}") from error
    print(f"\none rank, microbatches of {options.tokens:,} tokens, {options.dtype}; GiB above the imports\n")
    print(table(rows))
    write_json(options.out, {"machine": before, "rows": rows})
    print(f"\nbench: wrote {options.out}")


if __name__ == "__main__":
    main()
