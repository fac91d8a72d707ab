"""The training step: microbatches in, one optimizer step out, skipped where it is not finite."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learners.backend import Backend
from learners.export import classifier_config, write_adapter, write_export
from learners.lora import adapter_weights, merged_weights
from learners.objective import build_objective
from learners.publication import Publication
from learners.reference import Reference
from learners.settings import LearnerSettings
from lwz_ray.packing import Microbatch
from lwz_ray.preferences import PairBatch
from lwz_ray.records import StepResult


class Trainer:
    """One learner rank: a backend and an objective. Every rank makes the same calls in the same order."""

    def __init__(self, settings: LearnerSettings, backend: Backend) -> None:
        """Make the weights that the backend starts with the reference, where the algorithm has one."""
        self.settings = settings
        self.backend = backend
        self.objective = build_objective(settings)
        self.optimizer_steps = 0
        self.skipped_steps = 0
        self.publication = Publication(settings, backend)
        self.reference = _reference(settings, backend)

    def train(self, minibatches: Sequence[Sequence[Any]]) -> StepResult:
        """Take one optimizer step per minibatch (this rank's microbatches of it); metrics are global."""
        started = time.monotonic()
        totals = dict.fromkeys(self.objective.sum_keys, 0.0)
        norms, taken, lr = [], 0, self._learning_rate()
        for microbatches in minibatches:
            sums, norm = self._gradients(microbatches)
            finite = math.isfinite(sums["loss"]) and math.isfinite(norm)
            if finite:
                lr = self._learning_rate()
                self.backend.apply(lr)
                self.optimizer_steps += 1
                taken += 1
                norms.append(norm)
                totals = {k: totals[k] + sums[k] for k in totals}
            else:
                self.backend.discard()
                self.skipped_steps += 1
        metrics = {
            "train/lr": lr,
            "train/skipped": float(len(minibatches) - taken),
            "time/train_s": time.monotonic() - started,
        }
        metrics |= self.objective.metrics(totals, taken)
        if taken:
            metrics["train/grad_norm"] = sum(norms) / taken
        return StepResult(metrics, taken, len(minibatches) - taken, int(totals["tokens"]))

    def _gradients(self, microbatches: Sequence[Any]) -> tuple[dict[str, float], float]:
        """Accumulate one optimizer batch; return global sums and the gradient norm before clipping.

        Ranks that share a row each see the whole of its loss, so each counts for its part.
        """
        keys, part = self.objective.sum_keys, 1.0 / self.settings.sequence_parallel
        local = [0.0] * len(keys)
        for i, batch in enumerate(microbatches):
            loss, sums = self.objective.loss(self.backend.model, batch, self.backend.device)
            self.backend.accumulate(loss * part, last=i == len(microbatches) - 1)
            local = [a + part * b for a, b in zip(local, sums, strict=True)]
        total = dict(zip(keys, self.backend.sum_over_ranks(local), strict=True))
        return total, self.backend.clip_gradients(self.settings.max_grad_norm)

    def _learning_rate(self) -> float:
        """Return the rate of the next optimizer step: linear warm-up, then `lr_schedule`.

        With u = (step - warmup) / (total - warmup): linear 1 - u, cosine (1 + cos(pi u)) / 2 (arXiv 1608.03983 eq. 5
        without restarts). The last of `total_steps` still has a rate above 0; steps beyond keep it.
        """
        settings, step = self.settings, self.optimizer_steps
        if step < settings.warmup_steps:
            return settings.lr * (step + 1) / settings.warmup_steps
        if settings.lr_schedule == "constant":
            return settings.lr
        last = max(settings.warmup_steps, settings.total_steps - 1)
        u = (min(step, last) - settings.warmup_steps) / max(1, settings.total_steps - settings.warmup_steps)
        return settings.lr * (1.0 - u if settings.lr_schedule == "linear" else (1.0 + math.cos(math.pi * u)) / 2.0)

    def annotate(self, microbatches: Sequence[Microbatch]) -> list[dict[str, np.ndarray]]:
        """Return what the present weights, and the reference, say of each row's trained tokens.

        By name of `TokenFacts`, float32 [num_trained]. Every rank gives as many rows.
        """
        found = self._facts(microbatches)
        if self.reference is not None:
            with self.reference.in_place():
                theirs = self._facts(microbatches)
            found = [mine | {"ref_logprobs": ref["old_logprobs"]} for mine, ref in zip(found, theirs, strict=True)]
        return found

    def predict(self, microbatches: Sequence[PairBatch]) -> list[np.ndarray]:
        """Return each row's scores, float32 [num_texts], under the present weights; the preference objective's.

        Every rank gives as many rows.
        """
        return [found["scores"] for found in self._facts(microbatches)]

    def _facts(self, microbatches: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        """Ask the objective about each row, without gradient and without what differs in training."""
        model = self.backend.model
        model.eval()
        try:
            found = [self.objective.facts(model, batch, self.backend.device) for batch in microbatches]
        finally:
            model.train()
        return [{name: values.cpu().numpy() for name, values in row.items()} for row in found]

    def refresh_reference(self) -> None:
        """Make the present policy the reference."""
        if self.reference is None:
            raise RuntimeError("refresh_reference where algorithm.kl_coefficient is 0: there is no reference")
        self.reference.refresh()

    def save(self, folder: str) -> None:
        """Take this rank's part of a checkpoint; `finish_save` waits for it to be on disk."""
        self.backend.save(folder)
        if self.reference is not None:
            self.reference.save(folder)
        if self.backend.is_sender:
            state = {"optimizer_steps": self.optimizer_steps, "skipped_steps": self.skipped_steps}
            Path(folder, "trainer.json").write_text(json.dumps(state))

    def finish_save(self) -> None:
        """Return when the last `save` is on disk; may run beside training, in a thread of its own."""
        self.backend.finish_save()

    def load(self, folder: str) -> None:
        """Load what `save` wrote."""
        if self.reference is not None:
            self.reference.load(folder)
        self.backend.load(folder)
        state = json.loads(Path(folder, "trainer.json").read_text())
        self.optimizer_steps, self.skipped_steps = state["optimizer_steps"], state["skipped_steps"]

    def export(self, folder: str) -> None:
        """Write a Hugging Face folder on the sender; with adapters, merged, and the adapter alone below it."""
        settings, config = self.settings, None
        target = folder if self.backend.is_sender else None
        if settings.objective == "preference":
            config = classifier_config(settings.model_path, settings.trust_remote_code)
        write_export(merged_weights(self.backend, settings, torch.bfloat16), settings.model_path, target, config)
        if settings.lora is not None:
            write_adapter(adapter_weights(self.backend), settings.lora, settings.model_path, target)

    def close(self) -> None:
        self.publication.close()
        self.backend.close()


def _reference(settings: LearnerSettings, backend: Backend) -> Reference | None:
    algorithm = settings.algorithm
    if settings.objective != "policy" or algorithm is None or not algorithm.uses_reference:
        return None
    return Reference(backend, algorithm.reference_refresh_steps)
