"""Sentence embeddings by a small encoder: the model folder checked first, then loaded once."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lwz_ray.config import FormatRewardConfig
from lwz_ray.errors import UserError

MAX_TOKENS = 256
"""Of one sentence; what is longer is cut. The packaged model was trained with at most this many."""
BATCH_SIZE = 32
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def check_embedder(config: FormatRewardConfig) -> Path | None:
    """Return the folder of the embedding model, None where the config uses none, or refuse it before anything loads.

    Reads `config.json` alone. Raises UserError where a file is missing or the model is no plain encoder (a model with a
    head would load, and its embeddings mean nothing).
    """
    if config.semantic != "embedding":
        return None
    name = f"rewards.format.embedding_path={'null' if config.embedding_path is None else config.embedding_path}"
    if config.embedding_path is None:
        raise UserError(f"{name}: rewards.format.semantic=embedding needs the folder of a sentence-embedding model")
    folder = Path(config.embedding_path)
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        raise UserError(f"{name}: no {missing[0]} there; `make setup` writes models/all-MiniLM-L6-v2")
    try:
        model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{name}: config.json there is not JSON ({error}); save the model again") from error
    kinds = model.get("architectures") or []
    if not any(kind.endswith("Model") for kind in kinds):
        raise UserError(f"{name}: architectures {kinds} hold no plain encoder; name a sentence-embedding model")
    return folder


class SentenceEmbedder:
    """Embeds sentences on CPU threads; calls from several threads take turns (a tokenizer is no thread's own).

    `threads` is set for the whole process, as torch has it.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(threads)
        self._torch = torch
        self._turn = threading.Lock()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model, info = AutoModel.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise UserError(f"rewards.format.embedding_path={folder}: the weights lack {missing}; save the model again")
        self._model: Any = model.eval()

    def embed(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return ([n, width] float32: the last hidden states of each sentence added up; [n] float32: their number).

        Their quotient is the usual mean pooling; sums let passages be pooled from sentences. Equal sentences are read
        once, in batches of similar length. Without sentences: ([0, width], [0]).
        """
        unique = sorted(set(sentences), key=len)
        place = {sentence: i for i, sentence in enumerate(unique)}
        sums = np.zeros((len(unique), self._model.config.hidden_size), dtype=np.float32)
        counts = np.zeros(len(unique), dtype=np.float32)
        with self._turn:
            for start in range(0, len(unique), BATCH_SIZE):
                rows = slice(start, min(start + BATCH_SIZE, len(unique)))
                sums[rows], counts[rows] = self._forward(unique[rows])
        order = [place[sentence] for sentence in sentences]
        return sums[order], counts[order]

    def _forward(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Read one padded batch."""
        batch = self._tokenizer(sentences, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with self._torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1).numpy(), mask.sum(dim=(1, 2)).numpy()
