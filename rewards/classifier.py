"""The reward model itself, a sequence classifier with one output, and the choice of its engine."""

from collections.abc import Sequence
from typing import Any, Protocol

from lwz_ray.config import WritingRewardConfig
from lwz_ray.errors import UserError
from rewards.pairs import ClassifierScores, PairEncoder, check_folder


class Classifier(Protocol):
    """Scores pairs of request and answer; higher is better."""

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        """Return one raw scalar a pair, in order."""
        ...

    def close(self) -> None:
        """Free what the engine holds; nothing is scored afterwards."""
        ...


def load_classifier(config: WritingRewardConfig, threads: int, num_gpus: int) -> Classifier:
    """Load the model with the engine of the config; `threads` are those of its CPU work."""
    if config.engine == "vllm":
        from rewards.vllm_classifier import VllmClassifier  # only where it is used: it may not be installed

        return VllmClassifier(config, threads, num_gpus)
    return TransformersClassifier(config, threads, num_gpus)


class TransformersClassifier:
    """Plain transformers: right-padded batches of at most `batch_size` pairs, sorted by length to pad little.

    One GPU, or `threads` CPU threads.
    """

    def __init__(self, config: WritingRewardConfig, threads: int, num_gpus: int) -> None:
        folder = check_folder(config)
        import torch
        from transformers import AutoModelForSequenceClassification

        self._torch = torch
        self._device = "cuda" if num_gpus > 0 else "cpu"
        if self._device == "cpu":
            torch.set_num_threads(threads)
        self._batch_size = config.batch_size
        self._encoder = PairEncoder(folder, config.max_length_tokens)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise UserError(
                f"rewards.writing.path={config.path}: the weights lack {missing}; save the whole model again"
            )
        self._model: Any = model.to(self._device).eval()

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        """Return one raw logit a pair, in order, and how many answers were cut."""
        pairs = self._encoder.encode(prompts, texts)
        order = sorted(range(len(pairs.token_ids)), key=lambda i: len(pairs.token_ids[i]))
        values = [0.0] * len(order)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            for row, value in zip(rows, self._forward([pairs.token_ids[i] for i in rows]), strict=True):
                values[row] = value
        return ClassifierScores(tuple(values), pairs.num_truncated)

    def close(self) -> None:
        """Drop the model."""
        self._model = None

    def _forward(self, rows: Sequence[list[int]]) -> list[float]:
        """Score one padded batch.

        The model reads its scalar at the last token that is not the padding id. Many tokenizers pad with the token that
        also ends a chat turn, which would move that place: any id that ends no row marks the padding rightly.
        """
        torch = self._torch
        ends = {row[-1] for row in rows}
        pad = next(i for i in range(len(ends) + 1) if i not in ends)
        self._model.config.get_text_config().pad_token_id = pad
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask).logits
        return logits[:, 0].float().tolist()
