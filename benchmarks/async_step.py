"""Does the asynchronous step cost only the longer of generation and training? Each has a core of its own here.

    python -m benchmarks.async_step
    python -m benchmarks.async_step --model models/SmolLM2-135M-Instruct --steps 12 sampling.max_tokens=96

The rollout Ray actor and its engine are pinned to one core, the learner to another, in every run. Synchronous runs show
what generation and training take alone: one waits while the other works. The engine's concurrency is chosen so that the
two are within 0.7 to 1.4 of each other; then the same sizes run with max_staleness=0 and 1. Without --model a random
model is made whose samples all end at the token limit, so that every step has the same work. Writes
bench/async_step.json and .md; the status is 0 whether the targets are met or not.
"""

import argparse
import os
import shutil
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare import machine
from benchmarks.pinned_run import run_pinned
from launch.files import write_json, write_text_atomic
from launch.setup_models import SMOL
from lwz_ray.errors import InfrastructureError, UserError

WARM_UP, MIN_STEPS = 2, 3
BALANCED = (0.7, 1.4)
TARGET_RATIO, TARGET_STALL = 1.15, 0.05
SEQUENCES = (16, 8, 4, 2)
"""Concurrency of the engine that is tried: fewer sequences at once make generation slower, and nothing else."""
SHAPE: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
"""About 38 million weights with SmolLM2's vocabulary: between the random model of the tests and the 135M one."""
WORDS = (
    "run=smoke_cpu",
    "groups_per_step=2",
    "group_size=8",
    "sampling.max_tokens=192",
    "model.max_length_tokens=640",
    "data.languages=[en]",
    "data.max_prompt_tokens=256",
    "actors.num_cpus=0.9",
    "actors.threads=1",
    "actors.kv_cache_mib=512",
    "actors.repetition_stop.enabled=false",
    "learners.ranks=1",
    "learners.num_cpus=0.9",
    "learners.threads=1",
    "learners.microbatch_tokens=2048",
    "rewards.writing.path=null",
    "optimizer.lr=1.0e-6",
    "eval.num_prompts=1",
    "eval.samples_per_prompt=1",
    "tracking.wandb=false",
    "tracking.progress=false",
)


@dataclass(frozen=True, slots=True)
class Times:
    """Medians over a run's measured steps, seconds."""

    step_s: float
    wait_s: float
    """The learner waiting for groups: generation alone in a synchronous run, the last text's scoring included."""
    train_s: float
    """The step less waiting and weight update."""
    stage_s: float
    load_s: float
    pause_s: float
    """The engine's generation standing still in an update."""
    stall_share: float
    """Of the step."""
    wait_for_load_s: float
    """The loop waiting for weights that are still being loaded."""
    tokens: float


def times_of(rows: Sequence[Mapping[str, Any]], max_staleness: int) -> Times:
    """Return the medians of a run's steps after warm-up; at the end as many as max_staleness are left out.

    Those have nothing left to generate beside them. Raises InfrastructureError where fewer than MIN_STEPS remain.
    """
    measured = [r for r in rows if not r.get("superseded")][WARM_UP:]
    measured = measured[: len(measured) - max_staleness]
    if len(measured) < MIN_STEPS:
        raise InfrastructureError(f"{len(measured)} measured steps after {WARM_UP} of warm-up, {MIN_STEPS} are needed")

    def middle(values: Sequence[float]) -> float:
        return float(statistics.median(values))

    # Synchronous: everything waits for the load; asynchronous: for what of it was not done in time.
    held = ("weights/stage_s", "weights/load_s" if max_staleness == 0 else "weights/wait_s")
    return Times(
        step_s=middle([r["time/step_s"] for r in measured]),
        wait_s=middle([r["time/wait_s"] for r in measured]),
        train_s=middle([r["time/step_s"] - r["time/wait_s"] - sum(r[k] for k in held) for r in measured]),
        stage_s=middle([r["weights/stage_s"] for r in measured]),
        load_s=middle([r["weights/load_s"] for r in measured]),
        pause_s=middle([r["weights/pause_s"] for r in measured]),
        stall_share=middle([r["weights/stall_share"] for r in measured]),
        wait_for_load_s=middle([r["weights/wait_s"] for r in measured]),
        tokens=middle([r["rollout/tokens"] for r in measured]),
    )


def balance(times: Times) -> float:
    """Return generation alone over training alone, of a synchronous run."""
    return times.wait_s / times.train_s


def nearest(ratios: Mapping[int, float]) -> int:
    """Return the concurrency whose ratio is nearest to 1, as a factor.

    >>> nearest({16: 0.5, 8: 0.8, 4: 1.5})
    8
    """
    return min(ratios, key=lambda n: max(ratios[n], 1 / ratios[n]))


def compared(synchronous: Times, asynchronous: Times) -> dict[str, float]:
    """Return what the targets speak of."""
    longer = max(synchronous.wait_s, synchronous.train_s)
    return {
        "generation_s": synchronous.wait_s,
        "training_s": synchronous.train_s,
        "balance": balance(synchronous),
        "synchronous_s": synchronous.step_s,
        "asynchronous_s": asynchronous.step_s,
        "ratio": asynchronous.step_s / longer,
        "gain": synchronous.step_s / asynchronous.step_s,
        "stall_share": asynchronous.stall_share,
        "pause_s": asynchronous.pause_s,
        "stage_s": asynchronous.stage_s,
        "wait_for_load_s": asynchronous.wait_for_load_s,
    }


def table(found: Mapping[str, float]) -> str:
    """Return the comparison as a Markdown table with the verdicts below it."""
    balanced = BALANCED[0] <= found["balance"] <= BALANCED[1]
    rows = [
        ("generation alone (synchronous run: waiting for the batch)", f"{found['generation_s']:.2f} s"),
        ("training alone (the same run: the rest, without the weight update)", f"{found['training_s']:.2f} s"),
        ("generation / training", f"{found['balance']:.2f}"),
        ("synchronous step (`max_staleness=0`)", f"{found['synchronous_s']:.2f} s"),
        ("asynchronous step (`max_staleness=1`)", f"{found['asynchronous_s']:.2f} s"),
        ("asynchronous / the longer of the two", f"{found['ratio']:.2f}"),
        ("synchronous / asynchronous", f"{found['gain']:.2f}"),
        ("generation stalled by the weight update, asynchronous", f"{found['pause_s']:.3f} s"),
        ("the same as a share of the step", f"{found['stall_share']:.1%}"),
        ("learner held by the weight update: staging, and loads not done in time",
         f"{found['stage_s']:.2f} s, {found['wait_for_load_s']:.2f} s"),
    ]  # fmt: skip
    met = [
        f"target (asynchronous at most {TARGET_RATIO:g} of the longer): "
        f"{found['ratio']:.2f}, {'met' if found['ratio'] <= TARGET_RATIO else 'NOT met'}"
        + ("" if balanced else "; not judged, generation and training are too far apart"),
        f"target (stall at most {TARGET_STALL:.0%} of a step): "
        f"{found['stall_share']:.1%}, {'met' if found['stall_share'] <= TARGET_STALL else 'NOT met'}",
    ]
    return "\n".join(["| what | median |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows), "", *met])


def write_model(folder: Path, tokenizer_folder: Path) -> None:
    """Write the random model with tied embeddings and the tokenizer of another folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from launch.setup_models import tiny_config

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(19)
    model: Any = LlamaForCausalLM(LlamaConfig(**(tiny_config(tokenizer) | SHAPE), tie_word_embeddings=True))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Bench:
    """Runs of one model and one set of words, each in processes of its own that end before the next starts."""

    def __init__(self, model: Path, words: Sequence[str], folder: Path, timeout_s: float) -> None:
        """folder: for run folders and logs. Raises UserError where this process may use only one core."""
        self._model, self._words, self._folder, self._timeout_s = model, list(words), folder, timeout_s
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise UserError(f"this process may use core {cores[0]} alone: the bench needs one for each side")
        self.cores = {"rollout": [cores[0]], "engine": [cores[0]], "learner": [cores[1]]}

    def words(self, name: str, steps: int, max_staleness: int, sequences: int) -> list[str]:
        return [
            *WORDS, f"model.path={self._model}", f"actors.max_num_seqs={sequences}", f"max_staleness={max_staleness}",
            f"steps={steps}", f"run.checkpoint_every_steps={steps}", f"run.dir={self._folder.resolve()}",
            f"run.name={name}", *self._words,
        ]  # fmt: skip

    def run(self, name: str, steps: int, max_staleness: int, sequences: int) -> Times:
        """Return the times of a run of steps after warm-up; its log stays in the folder."""
        total = WARM_UP + steps + max_staleness
        words = self.words(name, total, max_staleness, sequences)
        shutil.rmtree(self._folder / name, ignore_errors=True)
        log = self._folder / f"{name}.log"
        print(f"bench: {name}: {total} steps, max_num_seqs {sequences} (output: {log})", flush=True)
        times = times_of(run_pinned(words, self._folder / name, log, self.cores, self._timeout_s), max_staleness)
        print(
            f"bench: {name}: step {times.step_s:.2f} s, waiting {times.wait_s:.2f} s, training {times.train_s:.2f} s, "
            f"{times.tokens:,.0f} tokens (load {os.getloadavg()[0]:.1f})", flush=True,
        )  # fmt: skip
        return times

    def calibrated(self, sequences: Sequence[int]) -> tuple[int, dict[int, float]]:
        """Return the concurrency that balances generation and training best, and every ratio that was seen."""
        ratios: dict[int, float] = {}
        for number in sequences:
            ratios[number] = balance(self.run(f"calibration-{number}", MIN_STEPS, 0, number))
            if BALANCED[0] * 1.15 <= ratios[number]:
                break
        return nearest(ratios), ratios


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.async_step", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", type=Path, help="a model folder (default: a random one of 38M weights, made here)")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each run (default: 10)")
    parser.add_argument("--max-num-seqs", type=int, nargs="+", default=list(SEQUENCES), help="concurrencies to try")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="of each run (default: 1800)")
    parser.add_argument("--out", type=Path, default=Path("bench/async_step.json"))
    parser.add_argument("words", nargs="*", help="config words, which win over the bench's own")
    options = parser.parse_intermixed_args(argv)
    if options.steps < MIN_STEPS:
        parser.error(f"--steps {options.steps}: a median needs {MIN_STEPS} or more")
    return options


def main() -> None:
    """Calibrate, run both, print the table, write the results."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    before, folder = machine(), options.out.parent / "async-runs"
    folder.mkdir(parents=True, exist_ok=True)
    model = options.model
    if model is None:
        model = folder / "random-38m"
        if not model.exists():
            write_model(model, options.models / SMOL)
    try:
        bench = Bench(model.resolve(), options.words, folder, options.timeout_s)
        sequences, ratios = bench.calibrated(options.max_num_seqs)
        synchronous = bench.run("synchronous", options.steps, 0, sequences)
        asynchronous = bench.run("asynchronous", options.steps, 1, sequences)
    except (UserError, InfrastructureError) as error:
        raise SystemExit(f"bench: {error}") from error
    found = compared(synchronous, asynchronous)
    text = f"{model.name}, max_num_seqs {sequences}, {synchronous.tokens:,.0f} tokens a step.\n\n{table(found)}\n"
    print(f"\n{text}")
    write_json(
        options.out,
        {
            "machine": before, "model": str(model), "max_num_seqs": sequences, "cores": bench.cores,
            "calibration": {str(n): r for n, r in ratios.items()},
            "words": bench.words("asynchronous", options.steps, 1, sequences),
            "synchronous": asdict(synchronous), "asynchronous": asdict(asynchronous), "found": found,
        },
    )  # fmt: skip
    write_text_atomic(options.out.with_suffix(".md"), text)
    print(f"bench: wrote {options.out} and its .md")


if __name__ == "__main__":
    main()
