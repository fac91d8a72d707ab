"""What a learner rank with adapters is seen to do, on the tiny random model."""

from pathlib import Path
from typing import Any

import torch

from learners.export import write_adapter, write_export
from learners.fsdp import FsdpBackend
from learners.lora import adapter_weights, merged_shapes, merged_weights, published_weights
from learners.settings import LearnerSettings
from learners.trainer import Trainer
from lwz_ray.config_rooms import LoraConfig
from lwz_ray.packing import split_over_ranks
from tests.learner_parts import batch, settings

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = LoraConfig(rank=4, alpha=6.0, target_modules=TARGETS)
SCALE = 1.5


def lora_settings(model: Path, **changes: Any) -> LearnerSettings:
    """Return settings of a float32 learner of adapters, with an epsilon at which AdamW is smooth."""
    return settings(model, **{"lora": LORA, "eps": 1e-3, **changes})


def copied(stream: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in stream}


def train_adapters(rank: int, world_size: int, address: str, model: str, folder: str) -> None:
    """Take two steps on one rank of a group, go back to a checkpoint and take the second again, export.

    What was seen goes to `folder`/rank_N.pt. The second batch is one sample: of two ranks one has nothing to train.
    """
    wanted = lora_settings(Path(model))
    backend = FsdpBackend(wanted, rank, world_size, address)
    trainer = Trainer(wanted, backend)
    first, second = (split_over_ranks(batch(lengths), 64, world_size)[rank] for lengths in ((5, 17, 2, 30, 11), (9,)))
    seen: dict[str, Any] = {"start": copied(backend.stream_weights(torch.float32))}
    seen["results"] = [trainer.train([first])]
    seen["after_one"] = copied(backend.stream_weights(torch.float32))
    checkpoint, export = Path(folder, "checkpoint"), Path(folder, "export")
    for path in (checkpoint, export):
        path.mkdir(exist_ok=True)
    trainer.save(str(checkpoint))
    backend.finish_save()
    seen["results"].append(trainer.train([second]))
    seen["after_two"] = copied(backend.stream_weights(torch.float32))
    trainer.load(str(checkpoint))
    trainer.train([second])
    seen["again"] = copied(backend.stream_weights(torch.float32))
    seen["published"] = copied(published_weights(backend, wanted, torch.bfloat16))
    seen["merged"] = copied(merged_weights(backend, wanted, torch.float32))
    seen["shapes"] = merged_shapes(backend)
    target = str(export) if backend.is_sender else None
    write_export(merged_weights(backend, wanted, torch.float32), model, target)
    write_adapter(adapter_weights(backend), LORA, model, target)
    torch.save(seen, Path(folder, f"rank_{rank}.pt"))
    trainer.close()
