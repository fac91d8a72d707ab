"""The FSDP2 backend: `fully_shard` over N ranks, float32 master weights, NCCL or gloo by device."""

import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from learners.models import TORCH_DTYPES, build_model
from learners.settings import LearnerSettings


class FsdpBackend:
    """One rank's shard of the network and its AdamW state."""

    def __init__(self, settings: LearnerSettings, rank: int, world_size: int, init_method: str) -> None:
        """Join the group and shard the model. init_method: `tcp://host:port` of rank 0."""
        self.rank, self.world_size = rank, world_size
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed + rank)
        if settings.device == "cuda":
            torch.cuda.set_device(0)  # Ray shows each rank its own GPU as device 0
        _join(settings, rank, world_size, init_method)
        self.mesh = init_device_mesh(settings.device, (world_size,))
        self.device = torch.device(settings.device)
        self.model = self._shard(settings)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )

    def _shard(self, settings: LearnerSettings) -> torch.nn.Module:
        model = build_model(settings)
        policy = MixedPrecisionPolicy(param_dtype=TORCH_DTYPES[settings.dtype], reduce_dtype=torch.float32)
        for layer in model.layers:
            fully_shard(layer, mesh=self.mesh, mp_policy=policy, reshard_after_forward=settings.reshard_after_forward)
        fully_shard(model, mesh=self.mesh, mp_policy=policy)
        # Sharded first, cast second: the float32 master copy never exists whole.
        model.float()
        model.register_forward_hook(_reshard_without_backward)
        return model

    @property
    def is_sender(self) -> bool:
        """Rank 0 speaks for the group."""
        return self.rank == 0

    def accumulate(self, loss: torch.Tensor, last: bool) -> None:
        """Run backward; gradients are reduced over ranks with the last microbatch of a batch.

        FSDP averages over ranks while our losses are global sums, hence the factor.
        """
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        (loss * self.world_size).backward()

    def clip_gradients(self, max_norm: float) -> float:
        """Clip by the global norm; return the norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

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

    def stream_weights(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (Hugging Face name, whole tensor), one collective each: every rank must iterate in step."""
        for name, parameter in self.model.named_parameters():
            tensor = parameter.detach().to(dtype)
            yield name.removeprefix("lm."), tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def weight_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return (Hugging Face name, whole shape) in the order of `stream_weights`, without a transfer."""
        return [(name.removeprefix("lm."), tuple(p.shape)) for name, p in self.model.named_parameters()]

    def save(self, folder: str) -> None:
        """Write model and optimizer shards (torch.distributed.checkpoint) and this rank's RNG state."""
        model_state, optimizer_state = get_state_dict(self.model, self.optimizer)
        save_shards({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=os.path.join(folder, "shards"))
        torch.save(torch.get_rng_state(), os.path.join(folder, f"rng_{self.rank}.pt"))
        dist.barrier()

    def load(self, folder: str) -> None:
        """Load what `save` wrote. The folder is trusted input: reading it uses pickle."""
        model_state, optimizer_state = get_state_dict(self.model, self.optimizer)
        state = {"model": model_state, "optimizer": optimizer_state}
        load_shards(state, checkpoint_id=os.path.join(folder, "shards"))
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        rng = os.path.join(folder, f"rng_{self.rank}.pt")
        if os.path.exists(rng):  # a rank that the checkpoint's group did not have keeps its seed's state
            torch.set_rng_state(torch.load(rng, weights_only=True))

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def _reshard_without_backward(model: torch.nn.Module, _inputs: object, _output: object) -> None:
    """Give the root's whole parameters back after a forward without gradient, where no backward will do it."""
    if not torch.is_grad_enabled():
        assert isinstance(model, FSDPModule)
        model.reshard()


def _join(settings: LearnerSettings, rank: int, world_size: int, init_method: str) -> None:
    # Checkpoints move CPU tensors too, so a CUDA group carries gloo beside NCCL.
    backend = "cpu:gloo,cuda:nccl" if settings.device == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=settings.timeout_s),
    )
