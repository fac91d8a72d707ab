"""The training step: microbatches in, one optimizer step out, skipped where it is not finite."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from learners.backend import Backend
from learners.export import classifier_config, write_export
from learners.models import TORCH_DTYPES
from learners.objective import build_objective
from learners.preference_objective import predict_texts
from learners.settings import LearnerSettings
from lwz_ray.preferences import PairBatch
from lwz_ray.records import StepResult
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import Bucket, pack_buckets

if TYPE_CHECKING:
    from learners.vllm_nccl import NcclSender


class Trainer:
    """One learner rank: a backend and an objective. Every rank makes the same calls in the same order."""

    def __init__(self, settings: LearnerSettings, backend: Backend) -> None:
        self.settings = settings
        self.backend = backend
        self.objective = build_objective(settings)
        self.optimizer_steps = 0
        self.skipped_steps = 0
        self._staging: StagingFolder | None = None
        self._sender: NcclSender | None = None

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
        """Accumulate one optimizer batch; return global sums and the gradient norm before clipping."""
        keys = self.objective.sum_keys
        local = [0.0] * len(keys)
        for i, batch in enumerate(microbatches):
            loss, sums = self.objective.loss(self.backend.model, batch, self.backend.device)
            self.backend.accumulate(loss, last=i == len(microbatches) - 1)
            local = [a + b for a, b in zip(local, sums, strict=True)]
        total = dict(zip(keys, self.backend.sum_over_ranks(local), strict=True))
        return total, self.backend.clip_gradients(self.settings.max_grad_norm)

    def _learning_rate(self) -> float:
        """Linear warm-up over the first optimizer steps, then constant, or linear to 0 after `total_steps`."""
        warmup, total, step = self.settings.warmup_steps, self.settings.total_steps, self.optimizer_steps
        if step < warmup:
            return self.settings.lr * (step + 1) / warmup
        if self.settings.lr_schedule == "linear":
            return self.settings.lr * max(0.0, (total - step) / max(1, total - warmup))
        return self.settings.lr

    def predict(self, microbatches: Sequence[PairBatch]) -> list[np.ndarray]:
        """Return each row's scores, float32 [num_texts], under the present weights; the preference objective's.

        Every rank gives as many rows: a forward is a collective too.
        """
        model = self.backend.model
        model.eval()
        try:
            return [predict_texts(model, batch, self.backend.device) for batch in microbatches]
        finally:
            model.train()

    def stream_buckets(self, policy_version: int) -> Iterator[Bucket]:
        """Yield the weights in buckets on the sender; other ranks yield nothing but take part."""
        weights = self.backend.stream_weights(TORCH_DTYPES[self.settings.publish_dtype])
        if self.backend.is_sender:
            yield from pack_buckets(weights, policy_version, self.settings.bucket_bytes)
        else:
            for _ in weights:
                pass

    def stage_weights(self, policy_version: int) -> list[str]:
        """Stage the weights on this host; return the header paths on the sender, nothing elsewhere."""
        if self.backend.is_sender and self._staging is None:
            self._staging = StagingFolder(self.settings.staging_candidates, self.settings.staging_bytes)
        paths = []
        for bucket in self.stream_buckets(policy_version):
            assert self._staging is not None
            paths.append(self._staging.write(bucket))
        return paths

    def clear_staged(self) -> None:
        """Delete the staged files of the last publication."""
        if self._staging is not None:
            self._staging.clear()

    def open_nccl(self, client: Any, host: str, port: int, size: int) -> None:
        """Join the transfer group of rank 0 and the engines' workers; vLLM is needed only here."""
        from learners.vllm_nccl import NcclSender

        dtype = TORCH_DTYPES[self.settings.publish_dtype]
        self._sender = NcclSender(self.backend, dtype, client, host, port, size)

    def send_nccl(self, policy_version: int) -> None:
        """Broadcast the weights to the engines."""
        if self._sender is None:
            raise RuntimeError("send_nccl before open_nccl")
        self._sender.send(policy_version)

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint."""
        self.backend.save(folder)
        if self.backend.is_sender:
            state = {"optimizer_steps": self.optimizer_steps, "skipped_steps": self.skipped_steps}
            Path(folder, "trainer.json").write_text(json.dumps(state))

    def load(self, folder: str) -> None:
        """Load what `save` wrote."""
        self.backend.load(folder)
        state = json.loads(Path(folder, "trainer.json").read_text())
        self.optimizer_steps, self.skipped_steps = state["optimizer_steps"], state["skipped_steps"]

    def export(self, folder: str) -> None:
        """Write a Hugging Face folder on the sender."""
        source, config = self.settings.model_path, None
        if self.settings.objective == "preference":
            config = classifier_config(source, self.settings.trust_remote_code)
        weights = self.backend.stream_weights(torch.bfloat16)
        write_export(weights, source, folder if self.backend.is_sender else None, config)

    def close(self) -> None:
        if self._staging is not None:
            self._staging.remove()
        self.backend.close()
