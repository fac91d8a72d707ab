"""Export to a Hugging Face folder that vLLM and transformers load."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict

COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".py", ".md")
WEIGHT_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
SETUP_MARKER = "lwz_setup.json"
"""Says that `make setup` wrote a folder; an export is not such a folder."""


def write_export(weights: Iterable[tuple[str, torch.Tensor]], source: str, folder: str | None) -> None:
    """Collect the weights in host memory and write them beside the source's config and tokenizer files.

    folder: existing target, or None on ranks that only take part in the collectives.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in weights:
        if folder is not None:
            state[name] = tensor.cpu()
    if folder is None:
        return
    for path in Path(source).iterdir():
        wanted = path.name.endswith(COPIED_SUFFIXES) and not path.name.endswith(WEIGHT_SUFFIXES)
        if path.is_file() and wanted and path.name != SETUP_MARKER:
            shutil.copy2(path, folder)
    save_torch_state_dict(state, folder, metadata={"format": "pt"})
