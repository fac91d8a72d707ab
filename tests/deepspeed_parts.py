"""DeepSpeed ranks on the tiny random model, and what plain torch makes of the same batches."""

import json
from pathlib import Path
from typing import Any

import torch

from learners.deepspeed import DeepSpeedBackend
from learners.models import build_model
from learners.objective import build_objective
from learners.trainer import Trainer
from lwz_ray.errors import UserError
from lwz_ray.packing import Microbatch, split_over_ranks
from lwz_ray.preferences import split_pairs_over_ranks
from tests.learner_parts import batch, settings
from tests.preference_parts import pairs

LR = 1e-2
WORLD_SIZE = 2
CASES = tuple((stage, dtype) for dtype in ("float32", "bfloat16") for stage in (1, 2, 3))
# With AdamW's usual epsilon the first step is the gradient's sign, and rounding noise around 0 shows as a whole step.
SMOOTH: dict[str, Any] = {"eps": 1e-3, "weight_decay": 0.1}


def plan() -> list[list[Microbatch]]:
    """Return two microbatches for each of two ranks, of unequal numbers of tokens."""
    return split_over_ranks(batch(), 40, WORLD_SIZE)


def torch_step(model_dir: Path) -> dict[str, Any]:
    """Take one step on all microbatches in one process, without any backend."""
    wanted = settings(model_dir, **SMOOTH)
    model: Any = build_model(wanted).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=wanted.betas, eps=wanted.eps, weight_decay=0.1)
    objective = build_objective(wanted)
    for microbatch in [m for rank in plan() for m in rank]:
        objective.loss(model, microbatch, torch.device("cpu"))[0].backward()
    named = {name.removeprefix("lm."): p for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), wanted.max_grad_norm))
    optimizer.step()
    return {"gradients": gradients, "norm": norm, "weights": {name: p.detach() for name, p in named.items()}}


def run_cases(rank: int, addresses: tuple[str, ...], model_dir: str, folder: str) -> None:
    """Run every case on one rank; write what was seen to `folder`/STAGE_DTYPE_rankN.pt."""
    *of_cases, last = addresses
    for (stage, dtype), address in zip(CASES, of_cases, strict=True):
        wanted = settings(Path(model_dir), backend="deepspeed", zero_stage=stage, dtype=dtype, **SMOOTH)
        backend = DeepSpeedBackend(wanted, rank, WORLD_SIZE, address)
        seen = {"names": backend.weight_shapes()} | _one_step(backend)
        checkpoint = Path(folder, f"{stage}_{dtype}")
        checkpoint.mkdir(exist_ok=True)
        seen |= _trainer(Trainer(wanted, backend), rank, checkpoint)
        torch.save(seen, Path(folder, f"{stage}_{dtype}_rank{rank}.pt"))
        backend.close()
    torch.save(_preference(rank, last, Path(model_dir)), Path(folder, f"3_preference_rank{rank}.pt"))


def _preference(rank: int, address: str, model_dir: Path) -> dict[str, Any]:
    """Train a reward model one step at stage 3, and score."""
    changes: dict[str, Any] = {"backend": "deepspeed", "zero_stage": 3, "objective": "preference", **SMOOTH}
    wanted = settings(model_dir, center_coefficient=0.01, **changes)
    trainer = Trainer(wanted, DeepSpeedBackend(wanted, rank, WORLD_SIZE, address))
    rows = split_pairs_over_ranks(pairs(), 40, WORLD_SIZE)[rank]
    result = trainer.train([rows])
    seen = {"metrics": result.metrics, "plan": rows, "scores": trainer.predict(rows)}
    trainer.close()
    return seen


def _one_step(backend: DeepSpeedBackend) -> dict[str, Any]:
    """Accumulate, drop, accumulate again, and take the step."""
    norms = []
    _accumulate(backend, unfinished=True)
    backend.discard()
    _accumulate(backend)
    gradients = _gradients(backend)
    norms.append(backend.clip_gradients(float("inf")))
    backend.discard()
    _accumulate(backend)
    norms += [backend.clip_gradients(1.0), backend.clip_gradients(1.0)]
    backend.apply(LR)
    weights = dict(backend.stream_weights(torch.float32))
    rounded = dict(backend.stream_weights(torch.bfloat16))
    return {"gradients": gradients, "norms": norms, "weights": weights, "rounded": rounded}


def _accumulate(backend: DeepSpeedBackend, unfinished: bool = False) -> None:
    objective = build_objective(backend.settings)
    first, last = plan()[backend.rank]
    backend.accumulate(objective.loss(backend.model, first, backend.device)[0], last=False)
    if not unfinished:
        backend.accumulate(objective.loss(backend.model, last, backend.device)[0], last=True)


def _gradients(backend: DeepSpeedBackend) -> dict[str, torch.Tensor]:
    """Return the whole gradients by DeepSpeed's own interface."""
    named = backend.engine.module.named_parameters()
    return {n.removeprefix("lm."): backend.deepspeed.utils.safe_get_full_grad(p).clone() for n, p in named}


def _trainer(trainer: Trainer, rank: int, checkpoint: Path) -> dict[str, Any]:
    """Save, train (a good batch, one that is not finite, one with an empty rank), go back, train again."""
    backend = trainer.backend
    trainer.save(str(checkpoint))
    noise = torch.rand(3)
    runs = []
    for _ in range(2):
        batches = [batch(), batch((9, 4), advantage=float("inf")), batch((9,))]
        plans = [split_over_ranks(samples, 64, WORLD_SIZE)[rank] for samples in batches]
        result = trainer.train(plans)
        runs.append({"result": result, "weights": dict(backend.stream_weights(torch.float32))})
        trainer.load(str(checkpoint))
    seen = {"runs": runs, "noise": (noise, torch.rand(3)), "restored": dict(backend.stream_weights(torch.float32))}
    return seen | {"refusals": _refusals(backend, checkpoint)}


def _refusals(backend: Any, checkpoint: Path) -> list[str]:
    """Return the errors for checkpoints of another stage and of another dtype."""
    torch.distributed.barrier()
    other = Path(f"{checkpoint}_of_another_layout_rank{backend.rank}")
    other.mkdir()
    layout = json.loads((checkpoint / "deepspeed.json").read_text())
    messages = []
    for change in ({"zero_stage": 0}, {"dtype": "float64"}):
        (other / "deepspeed.json").write_text(json.dumps(layout | change))
        try:
            backend.load(str(other))
        except UserError as error:
            messages.append(str(error).replace(str(other), "FOLDER"))
    return messages
