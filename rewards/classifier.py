"""The reward model itself, a sequence classifier with one output, and the choice of its engine."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from lwz_ray.config import WritingRewardConfig
from lwz_ray.errors import UserError
from rewards.pairs import ClassifierScores, check_folder, load_encoder, score_pairs

MAX_PADDING = 0.1
"""Share of a batch's tokens that may be padding, where the batch is large enough to keep the device busy without more.
A CPU is, with a few hundred tokens; a GPU wants thousands."""
BUSY_TOKENS = {"cpu": 512, "cuda": 16_384}


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
    """Plain transformers: right-padded batches of at most `batch_size` rows, of like length so that little is padded.

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
        self._config = config
        self._encoder = load_encoder(folder)
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
        self._model.config.get_text_config().use_cache = False  # one forward a row: nothing is read from it again
        self._causal = _is_causal(self._model)

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        """Return one raw logit a pair, in order; a text over the context is scored in windows."""
        return score_pairs(self._encoder, self._config, prompts, texts, self._score_rows)

    def close(self) -> None:
        """Drop the model."""
        self._model = None

    def _score_rows(self, rows: Sequence[list[int]]) -> list[float]:
        values = [0.0] * len(rows)
        lengths = [len(row) for row in rows]
        for batch in length_batches(lengths, self._config.batch_size, BUSY_TOKENS[self._device]):
            for index, value in zip(batch, self._forward([rows[i] for i in batch]), strict=True):
                values[index] = value
        return values

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
        mask = None
        # No token sees those after it, so padding on the right needs no mask, and attention takes its fast path.
        if not self._causal and any(len(row) < width for row in rows):
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask).logits
        return logits[:, 0].float().tolist()


def length_batches(lengths: Sequence[int], batch_size: int, busy_tokens: int) -> Iterator[list[int]]:
    """Yield the rows' indices in batches of at most `batch_size`, longest first.

    A batch that holds `busy_tokens` ends before a row that would make more than MAX_PADDING of it padding.

    >>> list(length_batches([100, 9, 95, 10], batch_size=4, busy_tokens=150))
    [[0, 2], [3, 1]]
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch:
            padded = lengths[batch[0]] * (len(batch) + 1)
            wasteful = padded - tokens - lengths[index] > MAX_PADDING * padded
            if len(batch) == batch_size or (wasteful and tokens >= busy_tokens):
                yield batch
                batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def _is_causal(model: Any) -> bool:
    """Tell whether every attention of the model looks back only."""
    found = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    return bool(found) and all(found)
