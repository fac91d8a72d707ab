"""The DeepSpeed backend: ZeRO stage 1, 2 or 3 over N ranks, float32 master weights, NCCL or gloo by device."""

import io
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from learners.models import TORCH_DTYPES, build_model
from learners.settings import LearnerSettings
from lwz_ray.errors import UserError

BUCKET_ELEMENTS = 50_000_000
"""Gradients reduced, and parameters gathered, at once: 200 MB in float32. DeepSpeed keeps such a buffer per rank."""
WHOLE_BELOW_ELEMENTS = 10_000
"""ZeRO-3 keeps smaller parameters (norms, biases) whole on every rank: gathering them costs more than it saves."""
TAG = "zero"


class DeepSpeedBackend:
    """One rank's share of the model and of its AdamW state. One backend per process."""

    def __init__(self, settings: LearnerSettings, rank: int, world_size: int, init_method: str) -> None:
        """Join the group and partition the model. init_method: `tcp://host:port` of rank 0.

        Every rank holds the whole model once, in the compute dtype, before it is partitioned; so do the master
        weights start: rounded to the compute dtype.
        """
        self.rank, self.world_size = rank, world_size
        self.settings = settings
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed + rank)
        if settings.device == "cuda":
            torch.cuda.set_device(0)  # Ray shows each rank its own GPU as device 0
        self.device = torch.device(settings.device)
        self.deepspeed = _import_deepspeed(settings.device)
        self.deepspeed.init_distributed(
            dist_backend="nccl" if settings.device == "cuda" else "gloo",
            auto_mpi_discovery=False,
            timeout=timedelta(seconds=settings.timeout_s),
            init_method=init_method,
            rank=rank,
            world_size=world_size,
        )
        self.dtype = TORCH_DTYPES[settings.dtype]
        self.engine = self._partition(settings)
        self.model = self.engine

    def _partition(self, settings: LearnerSettings) -> Any:
        model = build_model(settings)
        for parameter in model.parameters():  # not the buffers: rotary frequencies stay float32
            parameter.data = parameter.data.to(self.dtype)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        with redirect_stdout(io.StringIO()):  # one of its optimizers prints memory use; its logger still speaks
            engine, *_ = self.deepspeed.initialize(model=model, optimizer=optimizer, config=zero_config(settings))
        return engine

    @property
    def is_sender(self) -> bool:
        """Rank 0 speaks for the group."""
        return self.rank == 0

    def accumulate(self, loss: torch.Tensor, last: bool) -> None:
        """Run backward; gradients are summed over microbatches and, by the last one, over ranks.

        DeepSpeed averages over ranks (ZeRO-3 knows no sum) while our losses are global sums, hence the factor; its
        division by the number of microbatches is switched off.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def clip_gradients(self, max_norm: float) -> float:
        """Clip by the global norm; return the norm before clipping.

        DeepSpeed knows its norm only within a step that it takes or skips by itself. The partitions of the ranks are
        disjoint (padding is 0), so the norm is taken over them here, and the step is left to the caller.
        """
        gradients = self._local_gradients()
        squared = torch.nn.utils.get_total_norm(gradients).double().square().to(self.device)
        self.deepspeed.comm.all_reduce(squared)
        norm = float(squared.sqrt())
        if max_norm < norm < float("inf"):
            for gradient in gradients:
                gradient.mul_(max_norm / (norm + 1e-6))
        return norm

    def _local_gradients(self) -> list[torch.Tensor]:
        """Return this rank's partition of the reduced float32 gradients, as views."""
        optimizer = self.engine.optimizer
        if _is_bf16_optimizer(optimizer):
            return list(optimizer.fp32_groups_gradient_flat_partition)
        groups = list(optimizer.averaged_gradients.values())
        if not groups or any(group is None for group in groups):
            raise RuntimeError("no reduced gradients: the last accumulate() of a batch comes first")
        return [gradient for group in groups for gradient in group]

    def apply(self, lr: float) -> None:
        """Take the optimizer step and clear the gradients."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        if not self.engine.was_step_applied():
            raise RuntimeError("DeepSpeed skipped a step whose gradients are not finite; use discard() for those")

    def discard(self) -> None:
        """Drop the gradients of a skipped step, those of unfinished batches included.

        What DeepSpeed's own optimizers do when they meet an overflow; they offer no call for it.
        """
        optimizer = self.engine.optimizer
        if _is_bf16_optimizer(optimizer):
            optimizer.clear_hp_grads()
            optimizer.clear_lp_grads()
            return
        optimizer.zero_grad(set_to_none=True)  # ZeRO-3: the next gradients overwrite the partitions
        for partitions in (optimizer.averaged_gradients, getattr(optimizer, "all_grad_tensors", {})):
            for group in partitions:
                partitions[group] = None

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """Return the element-wise sums, equal on every rank."""
        tensor = torch.tensor(values, dtype=torch.float64 if self.device.type == "cpu" else torch.float32)
        tensor = tensor.to(self.device)
        self.deepspeed.comm.all_reduce(tensor)
        return tensor.tolist()

    def stream_weights(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (Hugging Face name, whole tensor), one collective each at most: every rank must iterate in step.

        The module's weights are the master weights rounded to the compute dtype, and at hand: whole on every rank
        with ZeRO-1 and 2, gathered one by one with ZeRO-3. Only a dtype wider than the compute dtype needs the masters.
        """
        from_masters = torch.finfo(dtype).bits > torch.finfo(self.dtype).bits
        for name, parameter in self.engine.module.named_parameters():
            if from_masters:
                tensor = self.deepspeed.utils.safe_get_full_fp32_param(parameter).to(dtype)
            else:
                with self.deepspeed.zero.GatheredParameters(parameter):
                    # A copy: the gathered tensor is freed on leaving, the module's own changes with the next step.
                    tensor = parameter.detach().to(dtype, copy=True)
            yield name.removeprefix("lm."), tensor

    def weight_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return (Hugging Face name, whole shape) in the order of `stream_weights`, without a transfer."""
        named = self.engine.module.named_parameters()
        return [(name.removeprefix("lm."), tuple(getattr(p, "ds_shape", p.shape))) for name, p in named]

    def save(self, folder: str) -> None:
        """Write DeepSpeed's own checkpoint, which only as many ranks can load, and this rank's RNG state."""
        self.engine.save_checkpoint(os.path.join(folder, "deepspeed"), tag=TAG, save_latest=False)
        torch.save(torch.get_rng_state(), os.path.join(folder, f"rng_{self.rank}.pt"))
        if self.is_sender:
            Path(folder, "deepspeed.json").write_text(json.dumps(self._layout()))
        self.deepspeed.comm.barrier()

    def load(self, folder: str) -> None:
        """Load what `save` wrote. The folder is trusted input: reading it uses pickle.

        Raises UserError where another backend, number of ranks, stage or dtype wrote it.
        """
        path = Path(folder, "deepspeed.json")
        if not path.is_file():
            raise UserError(f"learners=deepspeed: {folder} holds no DeepSpeed checkpoint; use learners=fsdp")
        for key, wanted in self._layout().items():
            saved = json.loads(path.read_text())[key]
            if saved != wanted:
                raise UserError(f"learners.{key}={wanted}: the checkpoint {folder} needs learners.{key}={saved}")
        loaded, _ = self.engine.load_checkpoint(os.path.join(folder, "deepspeed"), tag=TAG)
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint {TAG!r} in {folder}/deepspeed")
        torch.set_rng_state(torch.load(os.path.join(folder, f"rng_{self.rank}.pt"), weights_only=True))

    def _layout(self) -> dict[str, int | str]:
        """Return the config keys that a checkpoint is bound to."""
        return {"ranks": self.world_size, "zero_stage": self.settings.zero_stage, "dtype": self.settings.dtype}

    def close(self) -> None:
        if self.deepspeed.comm.is_initialized():
            self.engine.destroy()
            self.deepspeed.comm.destroy_process_group()


def zero_config(settings: LearnerSettings) -> dict[str, Any]:
    """Return DeepSpeed's config. Batch sizes are formal: the trainer owns the batches and the end of each."""
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if settings.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": WHOLE_BELOW_ELEMENTS,
        }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "zero_optimization": zero,
    }


def _is_bf16_optimizer(optimizer: Any) -> bool:
    """Tell the optimizer that DeepSpeed takes for ZeRO-1 in bfloat16 from those of its ZeRO stages."""
    return hasattr(optimizer, "clear_hp_grads")


def _import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for this device. It decides at import, by what it finds, and asks the environment first."""
    os.environ["DS_ACCELERATOR"] = device
    os.environ["LOCAL_RANK"] = "0"
    import deepspeed

    warnings.filterwarnings("ignore", r".*torch\.distributed\..* is deprecated", FutureWarning)  # its calls, not ours
    # On CPUs it would compile an all-reduce for inference when the group is made, and fail without a compiler.
    operators: Any = deepspeed.ops
    operators.__compatible_ops__ = {}
    return deepspeed
