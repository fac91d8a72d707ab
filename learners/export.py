"""Export to a Hugging Face folder that vLLM and transformers load."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

from learners.lora import peft_config
from lwz_ray.config_rooms import LoraConfig
from lwz_ray.errors import UserError

COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".py", ".md")
WEIGHT_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
SETUP_MARKER = "lwz_setup.json"
"""Says that `make setup` wrote a folder; an export is not such a folder."""
GENERATION_CONFIG = "generation_config.json"
ADAPTER_FOLDER = "adapter"


def write_export(
    weights: Iterable[tuple[str, torch.Tensor]], source: str, folder: str | None, config: dict[str, Any] | None = None
) -> None:
    """Collect the weights in host memory and write them beside the source's config and tokenizer files.

    folder: existing target, or None on ranks that only take part in the collectives. config: replaces the source's
    config.json for a network that does not generate.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in weights:
        if folder is not None:
            state[name] = _own(tensor.cpu())
    if folder is None:
        return
    left_out = {SETUP_MARKER} if config is None else {SETUP_MARKER, GENERATION_CONFIG}
    for path in Path(source).iterdir():
        wanted = path.name.endswith(COPIED_SUFFIXES) and not path.name.endswith(WEIGHT_SUFFIXES)
        if path.is_file() and wanted and path.name not in left_out:
            shutil.copy2(path, folder)
    if config is not None:
        Path(folder, "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_torch_state_dict(state, folder, metadata={"format": "pt"})


def write_adapter(
    weights: Iterable[tuple[str, torch.Tensor]], lora: LoraConfig, source: str, folder: str | None
) -> None:
    """Write the adapter alone as peft's folder `adapter` below the export; peft loads it onto the source model.

    weights: of `learners.lora.adapter_weights`; folder: of the export, None on ranks that only take part.
    """
    state = {f"base_model.model.{name}": _own(tensor.cpu()) for name, tensor in weights}
    if folder is None:
        return
    target = Path(folder, ADAPTER_FOLDER)
    target.mkdir(exist_ok=True)
    config = peft_config(lora, base=source)
    config.inference_mode = True
    config.save_pretrained(target)
    save_file(state, target / "adapter_model.safetensors", metadata={"format": "pt"})


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a view out of a larger storage (an unevenly sharded tensor is gathered with padding), or it is not saved."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def classifier_config(source: str, trust_remote_code: bool) -> dict[str, Any]:
    """Return the config.json of a one-label sequence classifier made from a causal language model or a classifier.

    Its weights are bfloat16, the head's too. Training with dtype=bfloat16 computes with that very rounding, so the
    export scores as the trained network does; in float32 it costs each head weight 1 part in 256 at most, with errors
    that average out over the hidden size.
    """
    config = json.loads(Path(source, "config.json").read_text())
    pad = next((config[k] for k in ("pad_token_id", "bos_token_id", "eos_token_id") if config.get(k) is not None), 0)
    return config | {
        "architectures": [_classifier_name(source, config, trust_remote_code)],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "dtype": "bfloat16",
        # transformers reads the scalar before the padding, and refuses a batch without this id.
        "pad_token_id": pad[0] if isinstance(pad, list) else pad,
    }


def _classifier_name(source: str, config: dict[str, Any], trust_remote_code: bool) -> str:
    remote = config.get("auto_map", {}).get("AutoModelForSequenceClassification")
    if remote:
        return remote.rpartition(".")[2]
    kind = type(AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code))
    if kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"model.path={source}: transformers has no sequence classifier for model_type={config.get('model_type')}; "
            "use a decoder such as Llama, Qwen or Mistral"
        )
    found: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[kind]
    return found.__name__
