"""What a rank of either backend is seen to do with its weights: swapped, streamed, offloaded, frozen, reloaded."""

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.parity_parts import open_backend
from learners.publication import Publication
from learners.settings import LearnerSettings
from learners.trainer import Trainer
from lwz_ray.config_rooms import LoraConfig
from lwz_ray.errors import UserError
from lwz_ray.packing import Microbatch, split_over_ranks
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import Bucket
from tests.learner_parts import batch, settings

KINDS: dict[str, dict[str, Any]] = {
    "fsdp": {},
    "zero1": {"backend": "deepspeed", "zero_stage": 1},
    "zero2": {"backend": "deepspeed", "zero_stage": 2},
    "zero3": {"backend": "deepspeed", "zero_stage": 3},
}
DTYPES = ("float32", "bfloat16")
OFFLOADED = {"fsdp": "float32", "zero1": "bfloat16", "zero2": "float32", "zero3": "float32"}
LORA = LoraConfig(rank=2, alpha=4.0, target_modules=["q_proj", "down_proj"])
BUCKET_BYTES = 2**18
"""As much as the largest tensor of the layered model has."""
LENGTHS = ((5, 17, 2, 30, 11), (9,), (7, 12, 3))
SMOOTH: dict[str, Any] = {"eps": 1e-3}


def wanted(model: str, kind: str, **changes: Any) -> LearnerSettings:
    return settings(Path(model), **{"bucket_bytes": BUCKET_BYTES, **SMOOTH, **KINDS[kind], **changes})


def rows(step: int, rank: int, world_size: int) -> list[Microbatch]:
    return split_over_ranks(batch(LENGTHS[step], seed=step + 1), 40, world_size)[rank]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.backend.stream_weights(torch.float32)}


def logprobs(trainer: Trainer, row: Microbatch) -> torch.Tensor:
    objective: Any = trainer.objective
    with torch.no_grad():
        return objective.logprobs(trainer.backend.model, row, trainer.backend.device)[0].clone()


@contextmanager
def opened(given: LearnerSettings, rank: int, world_size: int, addresses: Iterator[str]) -> Iterator[Trainer]:
    trainer = Trainer(given, open_backend(given, rank, world_size, next(addresses)))
    try:
        yield trainer
    finally:
        trainer.close()


def swaps(trainer: Trainer, rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Train two steps, go back, and train them again with a swap in between, which must leave no trace."""
    first, second = rows(0, rank, world_size), rows(1, rank, world_size)
    folder.mkdir(exist_ok=True)
    trainer.save(str(folder))
    trainer.backend.finish_save()
    start = trainer.backend.snapshot()
    seen = [logprobs(trainer, first[0])]
    trainer.train([first])
    trainer.train([second])
    never = weights(trainer)
    trainer.load(str(folder))
    trainer.train([first])
    seen.append(logprobs(trainer, first[0]))
    trainer.backend.swap(start)
    seen.append(logprobs(trainer, first[0]))
    trainer.backend.swap(start)
    seen.append(logprobs(trainer, first[0]))
    trainer.train([second])
    return {"logprobs": seen, "never": never, "swapped": weights(trainer)}


class StorageWatch(TorchDispatchMode):
    """Counts the bytes of storages that operations made and that are still alive; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = {t.untyped_storage()._cdata for t in _tensors((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in held:  # else a view of, or the same as, what it was made from
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


def _tensors(tree: Any) -> list[torch.Tensor]:
    found = [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]
    # A DTensor and a tensor still under way are wrappers: their memory is that of the tensor inside.
    return [getattr(x, "_local_tensor", getattr(x, "elem", x)) for x in found]


def publication_peaks(trainer: Trainer) -> dict[str, int]:
    """Return what existed beside the shards while the weights were staged, and where all are gathered at once.

    streamed, whole: most bytes of tensors; buckets_alive: most buckets, the one that is being filled included.
    """
    publication = Publication(trainer.settings, trainer.backend)
    written: list[weakref.ref[Any]] = []
    alive, plain_stream, plain_write = [0], trainer.backend.stream_weights, StagingFolder.write

    def stream(*args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for item in plain_stream(*args, **kwargs):
            alive.append(sum(ref() is not None for ref in written))
            yield item
            del item

    def write(folder: StagingFolder, bucket: Bucket, below: str = "") -> str:
        written.append(weakref.ref(bucket.payload.base))
        return plain_write(folder, bucket, below)

    with pytest.MonkeyPatch.context() as patch, StorageWatch() as streamed:
        patch.setattr(trainer.backend, "stream_weights", stream)
        patch.setattr(StagingFolder, "write", write)
        paths = publication.stage_weights(1).header_paths
    sizes = [json.loads(Path(path).read_text())["num_bytes"] for path in paths]
    publication.close()
    with StorageWatch() as whole:
        everything = list(trainer.backend.stream_weights(torch.float32))
    return {
        "streamed": streamed.peak,
        "whole": whole.peak,
        "buckets_alive": 1 + max(alive),
        "num_buckets": len(sizes),
        "largest_bucket": max(sizes, default=0),
        "largest_tensor": max(t.numel() * t.element_size() for _, t in everything),
    }


def frozen(trainer: Trainer, rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Train adapters one step, save, train another, go back; return names, weights and what lies on disk."""
    before = weights(trainer)
    trainer.train([rows(0, rank, world_size)])
    folder.mkdir(exist_ok=True)
    trainer.save(str(folder))
    trainer.backend.finish_save()
    after = weights(trainer)
    trainer.train([rows(1, rank, world_size)])
    further = weights(trainer)
    trainer.load(str(folder))
    torch.distributed.barrier()
    return {
        "before": before,
        "after": after,
        "further": further,
        "restored": weights(trainer),
        "adapters": [name for name, _ in trainer.backend.stream_weights(torch.float32, trainable_only=True)],
        "snapshot_elements": sum(t.numel() for t in trainer.backend.snapshot()),
        "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
    }


def offload(trainer: Trainer, rank: int, world_size: int) -> dict[str, Any]:
    """Train, drop a batch that is not finite, train; return the weights and the norms."""
    broken = split_over_ranks(batch((9, 4), advantage=float("inf")), 40, world_size)[rank]
    plans = [rows(0, rank, world_size), broken, rows(2, rank, world_size)]
    results = [trainer.train([plan]) for plan in plans]
    norms = [r.metrics["train/grad_norm"] for r in results if not r.skipped]
    return {"weights": weights(trainer), "norms": norms, "skipped": [r.skipped for r in results]}


def write_layered_model(source: Path, folder: Path) -> str:
    """Write a random model most of whose weights lie in its layers, not in the embedding; return its folder."""
    if not folder.exists():
        config = AutoConfig.from_pretrained(source)
        config.vocab_size, config.num_hidden_layers = 1024, 8
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def moments(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return AdamW's whole moments by DeepSpeed's own interface."""
    backend: Any = trainer.backend
    read: Callable[..., Any] = backend.deepspeed.utils.safe_get_full_optimizer_state
    named = list(backend.engine.module.named_parameters())
    return {f"{n} {key}": read(p, key).clone() for n, p in named for key in ("exp_avg", "exp_avg_sq")}


def write_state(trainer: Trainer, rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Train two steps and save; return the state there and the weights one step later."""
    for step in (0, 1):
        trainer.train([rows(step, rank, world_size)])
    folder.mkdir(exist_ok=True)
    trainer.save(str(folder))
    trainer.backend.finish_save()
    state = {"weights": weights(trainer), "moments": moments(trainer)}
    trainer.train([rows(2, rank, world_size)])
    return state | {"next": weights(trainer)}


def read_state(trainer: Trainer, rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Load what `write_state` saved on another number of ranks, and take its next step."""
    trainer.load(str(folder))
    state = {"weights": weights(trainer), "moments": moments(trainer), "left": (folder / "universal").exists()}
    trainer.train([rows(2, rank, world_size)])
    return state | {"next": weights(trainer), "steps": trainer.optimizer_steps}


def refusal(trainer: Trainer, folder: Path) -> str:
    """Return the error of loading a folder, with FOLDER for its name."""
    try:
        trainer.load(str(folder))
    except UserError as error:
        return str(error).replace(str(folder), "FOLDER")
    raise AssertionError(f"{folder} was loaded")


# ZeRO-1 in bfloat16 has an optimizer class of its own; with the others a dtype changes nothing about what is saved.
STATES = (("zero1", "float32"), ("zero1", "bfloat16"), ("zero2", "float32"), ("zero3", "float32"))


def run_writers(rank: int, world_size: int, addresses: list[str], model: str, folder: str) -> None:
    """Write one checkpoint a DeepSpeed stage and dtype."""
    seen, free = {}, iter(addresses)
    for kind, dtype in STATES:
        with opened(wanted(model, kind, dtype=dtype), rank, world_size, free) as trainer:
            path = Path(folder, f"{kind}_{dtype}_of_{world_size}")
            seen[kind, dtype] = write_state(trainer, rank, world_size, path)
    torch.save(seen, Path(folder, f"written_{world_size}_{rank}.pt"))


def run_readers(rank: int, world_size: int, addresses: list[str], model: str, folder: str) -> None:
    """Load what `run_writers` wrote on the other number of ranks."""
    seen, free = {}, iter(addresses)
    for kind, dtype in STATES:
        with opened(wanted(model, kind, dtype=dtype), rank, world_size, free) as trainer:
            path = Path(folder, f"{kind}_{dtype}_of_{3 - world_size}")
            seen[kind, dtype] = read_state(trainer, rank, world_size, path)
    torch.save(seen, Path(folder, f"read_{world_size}_{rank}.pt"))


def run_two(rank: int, world_size: int, addresses: list[str], model: str, folder: str) -> None:
    """Run every case of two ranks, then write and read checkpoints of the other number of ranks."""
    half = len(STATES)
    run_readers(rank, world_size, addresses[:half], model, folder)
    run_writers(rank, world_size, addresses[half : 2 * half], model, folder)
    seen, free, root = {}, iter(addresses[2 * half :]), Path(folder)
    for kind in KINDS:
        for dtype in DTYPES:
            with opened(wanted(model, kind, dtype=dtype), rank, world_size, free) as trainer:
                seen["swap", kind, dtype] = swaps(trainer, rank, world_size, root / f"swap_{kind}_{dtype}")
                if dtype == "float32":
                    other = root / ("zero1_float32_of_2" if kind == "fsdp" else "swap_fsdp_float32")
                    seen["refusal", kind] = refusal(trainer, other)
        layered = write_layered_model(Path(model), root / f"layered_{rank}")
        with opened(wanted(layered, kind), rank, world_size, free) as trainer:
            seen["publication", kind] = publication_peaks(trainer)
        with opened(wanted(model, kind, lora=LORA), rank, world_size, free) as trainer:
            seen["frozen", kind] = frozen(trainer, rank, world_size, root / f"frozen_{kind}")
        for cpu_offload in (False, True):
            given = wanted(model, kind, cpu_offload=cpu_offload, dtype=OFFLOADED[kind])
            with opened(given, rank, world_size, free) as trainer:
                seen["offload", kind, cpu_offload] = offload(trainer, rank, world_size)
    torch.save(seen, Path(folder, f"two_{rank}.pt"))


NUM_ADDRESSES = 2 * len(STATES) + len(KINDS) * (len(DTYPES) + 4)
