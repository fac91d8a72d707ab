"""The FSDP2 backend: `fully_shard` over N ranks, float32 master weights, NCCL or gloo by device."""

import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from learners.backend import other_backend
from learners.fsdp_checkpoint import FsdpCheckpoint
from learners.models import TORCH_DTYPES, build_model
from learners.optimizer import build_optimizer, clip, exchange, squared_norm
from learners.rendezvous import join
from learners.settings import LearnerSettings
from lwz_ray.errors import UserError


class FsdpBackend:
    """One rank's shard of the network and its optimizer's state."""

    def __init__(self, settings: LearnerSettings, rank: int, world_size: int, address: str) -> None:
        """Join the group and shard the model. address: of the group's `Rendezvous`."""
        self.rank, self.world_size = rank, world_size
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed + rank)
        if settings.device == "cuda":
            torch.cuda.set_device(0)  # Ray shows each rank its own GPU as device 0
        join(settings, rank, world_size, address)
        self.mesh = init_device_mesh(settings.device, (world_size,))
        self.device = torch.device(settings.device)
        self.model = self._shard(settings)
        self.optimizer = build_optimizer(settings, self.model.parameters())
        self._checkpoint = FsdpCheckpoint(self.model, self.optimizer, rank, self.mesh, settings.timeout_s)

    def _shard(self, settings: LearnerSettings) -> torch.nn.Module:
        model, dtype = build_model(settings), TORCH_DTYPES[settings.dtype]
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        # Pinned memory is CUDA's; on a CPU mesh the policy changes nothing but is run through.
        offload = CPUOffloadPolicy(pin_memory=settings.device == "cuda") if settings.cpu_offload else OffloadPolicy()
        for layer in model.layers:
            fully_shard(
                layer,
                mesh=self.mesh,
                mp_policy=policy,
                offload_policy=offload,
                reshard_after_forward=settings.reshard_after_forward,
            )
        fully_shard(model, mesh=self.mesh, mp_policy=policy, offload_policy=offload)

        def stored(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
            return tensor.to(dtype if frozen else torch.float32)

        # Sharded first, cast second: the float32 master copy never exists whole. Frozen weights need none.
        model._apply(stored)
        model.register_forward_hook(_reshard_without_backward)
        return model

    @property
    def is_sender(self) -> bool:
        """Rank 0 speaks for the group."""
        return self.rank == 0

    def accumulate(self, loss: torch.Tensor, last: bool) -> None:
        """Run backward; gradients are reduced over ranks with every microbatch, so that only shards are ever kept.

        FSDP averages over ranks while our losses are global sums, hence the factor.
        """
        (loss * self.world_size).backward()

    def clip_gradients(self, max_norm: float) -> float:
        """Clip by the global norm; return the norm before clipping."""
        whole = [p.grad for p in self.model.parameters() if p.grad is not None]
        gradients = [g.to_local() if isinstance(g, DTensor) else g for g in whole]
        squared = squared_norm(gradients, self.device)
        dist.all_reduce(squared)  # the shards of the ranks are disjoint
        norm = float(squared.sqrt())
        clip(gradients, norm, max_norm)
        return norm

    def apply(self, lr: float) -> None:
        """Take the optimizer step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def discard(self) -> None:
        """Drop the gradients of a skipped step."""
        self.optimizer.zero_grad(set_to_none=True)

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """Return the element-wise sums, equal on every rank."""
        tensor = torch.tensor(values, dtype=torch.float64 if self.device.type == "cpu" else torch.float32)
        tensor = tensor.to(self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def stream_weights(self, dtype: torch.dtype, trainable_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name behind `lm.`, whole tensor), one collective each: every rank must iterate in step.

        Nothing of a tensor is kept here: it is freed when the caller drops it, before the next is gathered.
        """
        reshard(self.model)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad or not trainable_only:
                yield name.removeprefix("lm."), self._whole(parameter, dtype)

    def _whole(self, parameter: torch.nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
        """Gather one parameter on the compute device; its shard is cast, and moved there, first."""
        assert isinstance(parameter, DTensor)
        shard = parameter.to_local().detach().to(self.device, dtype)
        placed = DTensor.from_local(
            shard,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        return placed.full_tensor()

    def weight_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return (Hugging Face name, whole shape) in the order of `stream_weights`, without a transfer."""
        return [(name.removeprefix("lm."), tuple(p.shape)) for name, p in self.model.named_parameters()]

    def snapshot(self) -> list[torch.Tensor]:
        """Return copies of this rank's shards of the trained weights, in a fixed order, where the shards live."""
        return [shard.clone() for shard in self._shards()]

    def swap(self, snapshot: list[torch.Tensor]) -> None:
        """Exchange the contents of weights and snapshot, in place; a second call undoes it."""
        exchange(self._shards(), snapshot)

    def _shards(self) -> list[torch.Tensor]:
        reshard(self.model)  # weights that are still gathered would outlive a change of the shards
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return [p.to_local().detach() if isinstance(p, DTensor) else p.detach() for p in trained]

    def save(self, folder: str) -> None:
        """Copy this rank's part of a checkpoint and begin to write it to the existing folder."""
        reshard(self.model)
        self._checkpoint.save(folder)

    def finish_save(self) -> None:
        """Return when the last `save` is on disk; raises what went wrong with it."""
        self._checkpoint.finish()

    def load(self, folder: str) -> None:
        """Load what `save` wrote, on any number of ranks. The folder is trusted input: reading it uses pickle.

        Raises UserError where the other backend wrote it.
        """
        if os.path.exists(os.path.join(folder, "deepspeed.json")):
            raise UserError(other_backend("fsdp", folder, "deepspeed"))
        reshard(self.model)
        self._checkpoint.load(folder)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def reshard(model: torch.nn.Module) -> None:
    """Give back whole parameters that a forward left behind, in every sharded module."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _reshard_without_backward(model: torch.nn.Module, _inputs: object, _output: object) -> None:
    """Give whole parameters back after a forward without gradient, where no backward will do it."""
    if not torch.is_grad_enabled():
        reshard(model)
