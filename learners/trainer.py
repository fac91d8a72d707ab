"""The training step: microbatches in, one optimizer step out, skipped where it is not finite."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from learners.export import write_export
from learners.fsdp import TORCH_DTYPES, FsdpBackend
from learners.policy_objective import SUM_KEYS, PolicyObjective
from learners.settings import LearnerSettings
from lwz_ray.packing import Microbatch
from lwz_ray.records import StepResult
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import Bucket, pack_buckets

if TYPE_CHECKING:
    from learners.vllm_nccl import NcclSender


class Trainer:
    """One learner rank: a backend and an objective. Every rank makes the same calls in the same order."""

    def __init__(self, settings: LearnerSettings, backend: FsdpBackend) -> None:
        self.settings = settings
        self.backend = backend
        self.objective = PolicyObjective(settings.clip_epsilon, settings.temperature)
        self.optimizer_steps = 0
        self.skipped_steps = 0
        self._staging: StagingFolder | None = None
        self._sender: NcclSender | None = None

    def train(self, minibatches: Sequence[Sequence[Microbatch]]) -> StepResult:
        """Take one optimizer step per minibatch (this rank's microbatches of it); metrics are global."""
        started = time.monotonic()
        totals = dict.fromkeys(SUM_KEYS, 0.0)
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
        tokens = max(totals["tokens"], 1.0)
        metrics = {
            "train/lr": lr,
            "train/skipped": float(len(minibatches) - taken),
            "train/tokens": totals["tokens"],
            "time/train_s": time.monotonic() - started,
        }
        if taken:
            metrics |= {
                "train/loss": totals["loss"] / taken,
                "train/grad_norm": sum(norms) / taken,
                "train/clip_fraction": totals["clipped"] / tokens,
                "train/mismatch": totals["abs_log_ratio"] / tokens,
                "train/mismatch_k3": totals["k3"] / tokens,
            }
        return StepResult(metrics, taken, len(minibatches) - taken, int(totals["tokens"]))

    def _gradients(self, microbatches: Sequence[Microbatch]) -> tuple[dict[str, float], float]:
        """Accumulate one optimizer batch; return global sums and the gradient norm before clipping."""
        local = [0.0] * len(SUM_KEYS)
        for i, batch in enumerate(microbatches):
            loss, sums = self.objective.loss(self.backend.model, batch, self.backend.device)
            self.backend.accumulate(loss, last=i == len(microbatches) - 1)
            local = [a + b for a, b in zip(local, sums, strict=True)]
        total = dict(zip(SUM_KEYS, self.backend.sum_over_ranks(local), strict=True))
        return total, self.backend.clip_gradients(self.settings.max_grad_norm)

    def _learning_rate(self) -> float:
        """Linear warm-up over the first optimizer steps, then constant."""
        warmup = self.settings.warmup_steps
        return self.settings.lr * min(1.0, (self.optimizer_steps + 1) / warmup) if warmup else self.settings.lr

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
        weights = self.backend.stream_weights(torch.bfloat16)
        write_export(weights, self.settings.model_path, folder if self.backend.is_sender else None)

    def close(self) -> None:
        if self._staging is not None:
            self._staging.remove()
        self.backend.close()
