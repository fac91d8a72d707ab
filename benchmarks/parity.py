"""The parity table: how far every backend, algorithm and packing is from plain transformers over padded batches.

    python -m benchmarks.parity
    python -m benchmarks.parity --algorithms grpo gspo

Three SGD steps in float32 on the tiny random model, a batch of two groups each, with the advantages and denominators
of each preset of conf/algorithm and with old logprobs that differ from the present ones, so that ratios do too. The
reference pads the batch, takes the logits of every token in one process and computes the formulas on matrices
(`tests.padded_reference`). Writes bench/parity.json.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import machine
from benchmarks.learner_parts import learner_settings
from benchmarks.parity_batches import batches_of, padded_value_loss
from benchmarks.parity_parts import PLACEMENTS, Job, Placement, Track, difference, job, run_jobs
from launch.compose import compose
from launch.files import write_json
from launch.setup_models import TINY_CLASSIFIER, TINY_POLICY
from learners.settings import LearnerSettings
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, UserError
from lwz_ray.records import TrainSample

PRESETS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "gdpo", "ppo")
CASES: dict[str, list[str]] = {
    **{name: [f"algorithm={name}"] for name in PRESETS},
    "grpo, KL and entropy": [
        "algorithm=grpo",
        "algorithm.kl_coefficient=0.1",
        "algorithm.entropy_coefficient=0.01",
    ],
    "ppo's critic": ["algorithm=ppo"],
}
CRITIC = "ppo's critic"
STEPS = 3
BUDGET = 64
"""Tokens of a packed row."""
LR = 0.05
TEMPERATURE = 0.8
BOUND = 1e-5
MEASURES = ("loss", "norm", "update")
WAYS = (*PLACEMENTS, Placement("sequence parallel, 2 ranks", 2, {"sequence_parallel": 2}))


def case_config(name: str) -> Config:
    """Return a case's config: one optimizer step a batch, whatever the preset says."""
    return compose([*CASES[name], "algorithm.minibatches=1", "sampling.temperature=0.8"])


def case_settings(name: str, config: Config, models: Path) -> LearnerSettings:
    """Return the settings of a learner in float32 with SGD and without clipping."""
    critic = name == CRITIC
    return learner_settings(
        str(models / (TINY_CLASSIFIER if critic else TINY_POLICY)),
        "float32",
        1,
        config.algorithm,
        objective="critic" if critic else "policy",
        value_clip=config.critic.value_clip,
        optimizer="sgd",
        lr=LR,
        temperature=TEMPERATURE,
        logprob_chunk_tokens=16,
        max_grad_norm=1e9,
    )


def padded_track(name: str, settings: LearnerSettings, batches: Sequence[list[TrainSample]]) -> Track:
    """Return what plain transformers and torch's SGD make of the same batches, padded, in this process."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if name == CRITIC else AutoModelForCausalLM
    model: Any = auto.from_pretrained(settings.model_path, dtype=torch.float32, attn_implementation="sdpa")
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
    loss_of = _padded_loss(name, settings)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses, norms = [], []
    for samples in batches:
        optimizer.zero_grad()
        loss = loss_of(model, samples)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        # Summed in float64: three million squares in float32 are off by more than what is compared here.
        norms.append(sum(float(g.double().square().sum()) for g in gradients) ** 0.5)
        optimizer.step()
    return Track(losses, norms, {n: p.detach() - start[n] for n, p in model.named_parameters()})


def _padded_loss(name: str, settings: LearnerSettings) -> Callable[[Any, Sequence[TrainSample]], torch.Tensor]:
    if name == CRITIC:
        return lambda model, samples: padded_value_loss(model, samples, settings.value_clip)
    from tests.padded_reference import padded_loss

    assert settings.algorithm is not None
    algorithm = settings.algorithm
    return lambda model, samples: padded_loss(model, samples, algorithm, settings.temperature)


def run_all(names: Sequence[str], models: Path, timeout_s: float) -> list[dict[str, Any]]:
    """Return one row a case and way, with its differences from the padded reference."""
    jobs: list[tuple[str, Job]] = []
    references: dict[str, Track] = {}
    for index, name in enumerate(names):
        config = case_config(name)
        settings = case_settings(name, config, models)
        batches = [batches_of(config, seed=10 * index + step) for step in range(STEPS)]
        references[name] = padded_track(name, settings, batches)
        losses = ", ".join(f"{x:.6f}" for x in references[name].losses)
        print(f"parity: {name}: padded reference, losses {losses}", flush=True)
        for way in WAYS:
            jobs.append((name, job(way, settings, batches, BUDGET)))
        alone = Placement("1 process, one sample a row", 1)
        jobs.append((name, job(alone, settings, batches, None)))
    print(f"parity: {len(jobs)} runs of {STEPS} steps", flush=True)
    tracks = run_jobs([one for _, one in jobs], timeout_s)
    return [
        {"algorithm": name, "way": one.placement.name, **measures(_named(track), references[name])}
        for (name, one), track in zip(jobs, tracks, strict=True)
    ]


def measures(track: Track, reference: Track) -> dict[str, float]:
    """Return how far a run is from the reference: relative but for the loss, which may be near 0 where terms cancel."""
    found = difference(track, reference)
    loss = max(abs(a - b) for a, b in zip(track.losses, reference.losses, strict=True))
    return {"loss": loss, "norm": found.norm, "update": found.update}


def _named(track: Track) -> Track:
    """Return a track with its weights by their Hugging Face names."""
    return replace(track, update={n.removeprefix("lm."): t for n, t in track.update.items()})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: a row an algorithm, a column a way, its greatest difference in each cell."""
    ways = list(dict.fromkeys(r["way"] for r in rows))
    lines = [f"| algorithm | {' | '.join(ways)} |", f"| :--- |{' ---: |' * len(ways)}"]
    for name in dict.fromkeys(r["algorithm"] for r in rows):
        cells = {r["way"]: f"{max(r[k] for k in MEASURES):.1e}" for r in rows if r["algorithm"] == name}
        lines.append(f"| {name} | {' | '.join(cells[w] for w in ways)} |")
    return "\n".join(lines)


def by_measure(rows: Sequence[dict[str, Any]]) -> str:
    """Return the greatest difference over all algorithms, by way and measure."""
    lines = [
        "| greatest over the algorithms | loss, absolute | gradient norm, relative | update, relative |",
        "| :--- | ---: | ---: | ---: |",
    ]
    for way in dict.fromkeys(r["way"] for r in rows):
        mine = [r for r in rows if r["way"] == way]
        lines.append(f"| {way} | {' | '.join(f'{max(r[k] for r in mine):.1e}' for k in MEASURES)} |")
    return "\n".join(lines)


def main() -> None:
    """Run all, print the tables, write the JSON; the status is 1 where a difference is over the bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--algorithms", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("bench/parity.json"))
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of the runs on two ranks (default: 600)")
    options = parser.parse_args()
    before, started = machine(), time.monotonic()
    torch.set_num_threads(1)
    try:
        rows = run_all(options.algorithms, options.models, options.timeout_s)
    except (UserError, InfrastructureError) as error:
        raise SystemExit(f"parity: {error}") from error
    print(f"\n{STEPS} SGD steps, float32, differences from padded plain transformers\n")
    print(f"{table(rows)}\n\n{by_measure(rows)}\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {"machine": before, "steps": STEPS, "lr": LR, "rows": rows})
    print(f"parity: wrote {options.out} after {time.monotonic() - started:.0f} s")
    over = [r for r in rows if not max(r[k] for k in MEASURES) <= BOUND]
    for row in over:
        print(f"parity: over {BOUND:g}: {row}")
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
