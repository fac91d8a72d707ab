"""One learner rank whose memory is measured: the real backend, objective and trainer, without Ray."""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.learner_parts import one_sample
from benchmarks.memory_check import STEPS
from benchmarks.memory_reading import peak_bytes, settle
from lwz_ray.config import Config
from lwz_ray.packing import split_over_ranks


def run_rank(rank: int, tree: dict[str, Any], microbatches: int, address: str, files: list[str]) -> None:
    """Train and publish on one rank; write its peaks in bytes, by phase and overall, to files[rank]."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from learners.trainer import Trainer

    config = Config.model_validate(tree)
    backend_class = _import_everything(config)
    from launch.learner_room import learner_settings

    settings = learner_settings(config, ("/dev/shm", "/tmp"), 2**29)
    before = settle()
    trainer = Trainer(settings, backend_class(settings, rank, config.learners.ranks, address))
    peaks = {"start": peak_bytes() - before}
    held = settle() - before
    tokens, vocabulary = config.learners.microbatch_tokens, _vocabulary(config.model.path)
    samples = [one_sample(tokens, vocabulary) for _ in range(config.learners.ranks * microbatches)]
    plan = split_over_ranks(samples, tokens, config.learners.ranks)[rank]
    for step in range(STEPS):
        trainer.train([plan])
        peaks[f"step {step + 1}"] = peak_bytes() - before
        held_after = settle() - before
    trainer.publication.stage_weights(1)
    peaks["publish"] = peak_bytes() - before
    trainer.close()
    found = {"bytes": max(peaks.values()), "peaks": peaks, "before": before, "held": held, "held_after": held_after}
    Path(files[rank]).write_text(json.dumps(found))


def _import_everything(config: Config) -> Any:
    """Import what a rank needs, so that no library's own memory is counted; return the backend's class."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    if config.learners.backend == "deepspeed":
        from learners.deepspeed import DeepSpeedBackend, _import_deepspeed

        _import_deepspeed(config.learners.device)
        return DeepSpeedBackend
    from learners.fsdp import FsdpBackend

    return FsdpBackend


def _vocabulary(path: str) -> int:
    return json.loads((Path(path) / "config.json").read_text())["vocab_size"]
