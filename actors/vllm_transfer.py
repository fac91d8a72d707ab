"""What runs in vLLM's own processes: reading staged buckets from the host, and ending with the Ray actor.

vLLM builds its weight-transfer engine inside the process that holds the model. Naming `WorkerExtension` as
`worker_extension_cls` imports this module there, which registers the backend; no installed entry point is needed.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform
from vllm.v1.executor import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from actors.orphans import end_when_orphaned, end_with_parent
from lwz_ray.lora import is_adapter, merged, pair_up
from lwz_ray.model_folder import read_weights
from lwz_ray.staging import check_one_version, read_header, read_staged

BACKEND = "staged"


@dataclass
class StagedInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class StagedUpdateInfo(WeightTransferUpdateInfo):
    """Header paths of every bucket of one policy version: one metadata call an update."""

    header_paths: list[str] = field(default_factory=list)


class StagedWeightTransferEngine(WeightTransferEngine[StagedInitInfo, StagedUpdateInfo]):
    """Load verified buckets from files on this host through vLLM's layerwise reload."""

    model: Any
    init_info_cls = StagedInitInfo
    update_info_cls = StagedUpdateInfo

    def init_transfer_engine(self, init_info: StagedInitInfo) -> None:
        """Need no connection."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: StagedUpdateInfo) -> None:
        """Load bucket by bucket; each is verified before any of its tensors reaches the model."""
        paths = update_info.header_paths
        if not paths:
            raise ValueError("an update without buckets")
        check_one_version(paths)
        if is_adapter(read_header(paths[0]).tensors[0].name):
            self.model.load_weights(self._merged(paths))
            return
        for path in paths:
            self.model.load_weights((name, tensor.to(self.device)) for name, tensor in read_staged(path))

    def _merged(self, header_paths: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every weight of the model folder, with the staged adapters merged into theirs.

        All of them, since vLLM fuses some (q, k and v; gate and up) and what is not sent of a fused one is lost. Every
        bucket is verified before the first weight is handed out.
        """
        adapters = pair_up(item for path in header_paths for item in read_staged(path))
        base = ((name, tensor.to(self.device)) for name, tensor in read_weights(self._model_folder()))
        return merged(base, adapters, self.model_config.dtype)

    def _model_folder(self) -> Path:
        """Return where vLLM read the weights at its start: a folder, or a hub model's in the local cache."""
        name = self.model_config.model
        if Path(name).is_dir():
            return Path(name)
        patterns = ["*.safetensors", "*.safetensors.index.json"]
        return Path(
            snapshot_download(name, revision=self.model_config.revision, allow_patterns=patterns, local_files_only=True)
        )

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            _pack_tied_heads_again(self.model)

    def shutdown(self) -> None:
        """Hold nothing."""


def _pack_tied_heads_again(model: Any) -> None:
    """Rebuild the output heads that share the input embedding's weight.

    On CPUs vLLM multiplies with a packed copy of each weight. A tied head has no weights of its own in an update, so
    its copy is never made anew, and logits would go on coming from the old embedding.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    heads: list[Any] = [m for m in layers if isinstance(m, ParallelLMHead)]
    embeddings = {m.weight.data_ptr() for m in layers if m not in heads}
    for head in heads:
        if head.weight.data_ptr() in embeddings:
            head.quant_method.process_weights_after_loading(head)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, StagedWeightTransferEngine)


class WorkerExtension:
    """Mixed into vLLM's worker; its import registers the backend."""

    def end_when_orphaned(self) -> None:
        """Leave no engine behind a Ray actor that was killed."""
        end_when_orphaned()

    def sign_of_life(self) -> int:
        """Return the process id, between two steps: a worker process that is frozen does not answer."""
        return os.getpid()


class BoundExecutor(MultiprocExecutor):
    """vLLM's executor of worker processes, which lets the process that it is built in end with the Ray actor."""

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


def bound(executor: type[Executor]) -> type[Executor]:
    """Return the executor to use in place of vLLM's choice; where the worker is inside, `WorkerExtension` is enough."""
    return BoundExecutor if executor is MultiprocExecutor else executor
