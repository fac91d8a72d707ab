"""The DeepSpeed backend: ZeRO stage 1, 2 or 3 over N ranks, float32 master weights, NCCL or gloo by device."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import torch

from learners.deepspeed_checkpoint import DeepSpeedCheckpoint
from learners.deepspeed_config import zero_config
from learners.models import TORCH_DTYPES, build_model
from learners.optimizer import build_optimizer, clip, exchange, squared_norm
from learners.rendezvous import join
from learners.settings import LearnerSettings


class DeepSpeedBackend:
    """One rank's share of the model and of its optimizer's state. One backend per process."""

    def __init__(self, settings: LearnerSettings, rank: int, world_size: int, address: str) -> None:
        """Join the group and partition the model. address: of the group's `Rendezvous`.

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
        join(settings, rank, world_size, address)
        self.deepspeed.init_distributed(auto_mpi_discovery=False)  # takes the group that is there
        self.dtype = TORCH_DTYPES[settings.dtype]
        self.engine = self._partition(settings)
        self.model = self.engine
        self._checkpoint = DeepSpeedCheckpoint(self)

    def _partition(self, settings: LearnerSettings) -> Any:
        model = build_model(settings)
        for parameter in model.parameters():  # not the buffers: rotary frequencies stay float32
            parameter.data = parameter.data.to(self.dtype)
        optimizer = build_optimizer(settings, model.parameters())
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
        squared = squared_norm(gradients, self.device)
        self.deepspeed.comm.all_reduce(squared)
        norm = float(squared.sqrt())
        clip(gradients, norm, max_norm)
        return norm

    def _local_gradients(self) -> list[torch.Tensor]:
        """Return this rank's partition of the reduced float32 gradients, as views."""
        optimizer = self.engine.optimizer
        if _is_bf16_optimizer(optimizer):
            return list(optimizer.fp32_groups_gradient_flat_partition)
        if self.settings.cpu_offload:
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # gradients are copied to the host beside the computation
            return [master.grad for master in self._masters() if master.grad is not None]
        groups = list(optimizer.averaged_gradients.values())
        if not groups or any(group is None for group in groups):
            raise RuntimeError("no reduced gradients: the last accumulate() of a batch comes first")
        return [gradient for group in groups for gradient in group]

    def _masters(self) -> list[torch.Tensor]:
        """Return this rank's flat float32 partitions, on the host where they are offloaded."""
        optimizer = self.engine.optimizer
        if self.settings.zero_stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return list(optimizer.single_partition_of_fp32_groups)

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
        if self.settings.cpu_offload:
            optimizer.reset_cpu_buffers()
            if self.settings.zero_stage < 3:  # else the next gradients would be added to those on the host
                optimizer.micro_step_id = -1
                optimizer._offload_accumulated_param_ids = set()

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """Return the element-wise sums, equal on every rank."""
        tensor = torch.tensor(values, dtype=torch.float64 if self.device.type == "cpu" else torch.float32)
        tensor = tensor.to(self.device)
        self.deepspeed.comm.all_reduce(tensor)
        return tensor.tolist()

    def stream_weights(self, dtype: torch.dtype, trainable_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name behind `lm.`, whole tensor), one collective each at most: every rank must iterate in step.

        The module's weights are the master weights rounded to the compute dtype, and at hand: whole on every rank
        with ZeRO-1 and 2, gathered one by one with ZeRO-3. Only a dtype wider than the compute dtype needs the masters.
        Nothing of a tensor is kept here: it is freed when the caller drops it, before the next is gathered.
        """
        for name, parameter in self.engine.module.named_parameters():
            if parameter.requires_grad or not trainable_only:
                yield name.removeprefix("lm."), self._whole(parameter, dtype)

    def _whole(self, parameter: torch.nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
        wider = torch.finfo(dtype).bits > torch.finfo(self.dtype).bits
        if wider and parameter.requires_grad:  # frozen weights have no master copy
            return self.deepspeed.utils.safe_get_full_fp32_param(parameter).to(dtype)
        sharded = self._is_sharded(parameter)
        with self.deepspeed.zero.GatheredParameters(parameter):
            # What is gathered for this call is the caller's; the module's own changes with the next step.
            return parameter.detach().to(self.device, dtype, copy=not sharded)

    def _is_sharded(self, parameter: torch.nn.Parameter) -> bool:
        """Tell a parameter of which this rank holds a part from a whole one."""
        status = getattr(parameter, "ds_status", None)
        return status is not None and status.name == "NOT_AVAILABLE"

    def snapshot(self) -> list[torch.Tensor]:
        """Return copies of this rank's part of the trained weights, in the compute dtype, in a fixed order."""
        return [shard.clone() for shard in self._shards()]

    def swap(self, snapshot: list[torch.Tensor]) -> None:
        """Exchange the contents of weights and snapshot, in place; a second call undoes it.

        The master weights stay: forward passes never read them, and no step is taken in between. With ZeRO-3 what was
        gathered before is dropped first, and the small parameters that are kept whole are gathered again.
        """
        if self.settings.zero_stage < 3:
            exchange(self._shards(), snapshot)
            return
        optimizer = self.engine.optimizer
        optimizer.checkpoint_event_prologue()
        exchange(self._shards(), snapshot)
        optimizer.checkpoint_event_epilogue()

    def _shards(self) -> list[torch.Tensor]:
        trained = [p for p in self.engine.module.parameters() if p.requires_grad]
        return [p.ds_tensor.data if self.settings.zero_stage == 3 else p.data for p in trained]

    def weight_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return (Hugging Face name, whole shape) in the order of `stream_weights`, without a transfer."""
        named = self.engine.module.named_parameters()
        return [(name.removeprefix("lm."), tuple(getattr(p, "ds_shape", p.shape))) for name, p in named]

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint into the existing folder; all is on disk when this returns."""
        self._checkpoint.save(folder)

    def finish_save(self) -> None:
        """Nothing is left to write: DeepSpeed's own save waits for the disk."""

    def load(self, folder: str) -> None:
        """Load what `save` wrote; another number of ranks through DeepSpeed's universal checkpoint.

        The folder is trusted input: reading it uses pickle. Raises UserError where another backend, stage or dtype
        wrote it.
        """
        self._checkpoint.load(folder)

    def close(self) -> None:
        if self.deepspeed.comm.is_initialized():
            self.engine.destroy()
            self.deepspeed.comm.destroy_process_group()


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
