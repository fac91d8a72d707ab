"""What every engine of the reward model shares: the check of its folder, and pairs scored in windows."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lwz_ray.config import WritingRewardConfig
from lwz_ray.errors import UserError
from lwz_ray.pair_encoding import PairEncoder, aggregate, cut_windows

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class ClassifierScores:
    """What a reward model answers to one request."""

    values: tuple[float, ...]
    """Raw scalar outputs, one a pair, no activation applied."""
    coverage: tuple[float, ...]
    """Share of each answer's tokens that the model read, in (0, 1]."""
    num_windowed: int
    """Pairs longer than the model's context, scored in windows."""


def check_folder(config: WritingRewardConfig) -> Path:
    """Return the folder of a sequence-classification model with one output, or refuse it before anything loads.

    Raises UserError where the path is no model folder, the model is of another kind (a causal model would load with a
    new, random head), has more than one output, or fewer positions than `max_length_tokens`.
    """
    if config.path is None:
        raise UserError("rewards.writing.path=null: name a Hugging Face model folder")
    folder = _local_folder(config.path)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"rewards.writing.path={config.path}: no config.json there; name a Hugging Face model folder")
    model = json.loads(file.read_text(encoding="utf-8"))
    kinds = model.get("architectures") or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise UserError(
            f"rewards.writing.path={config.path}: architectures {kinds} hold no sequence classifier; "
            "name a folder saved from a …ForSequenceClassification model"
        )
    # Files that state no labels mean the library's default of two.
    num_labels = len(model["id2label"]) if "id2label" in model else model.get("num_labels", 2)
    if num_labels != 1:
        raise UserError(
            f"rewards.writing.path={config.path}: the model has {num_labels} outputs, a reward model has 1; "
            "name a model trained with num_labels=1"
        )
    positions = model.get("max_position_embeddings")
    if positions is not None and config.max_length_tokens > positions:
        raise UserError(
            f"rewards.writing.max_length_tokens={config.max_length_tokens} exceeds the {positions} positions of "
            f"{config.path}; lower it"
        )
    return folder


def _local_folder(path: str) -> Path:
    """Return a folder as it is, and the local copy of a hub name (owner/name), fetched where the hub may be asked."""
    if Path(path).is_dir() or not _HUB_NAME.fullmatch(path):
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]))
    except Exception as error:  # offline, no such model, no access, no network: each its own kind
        raise UserError(
            f"rewards.writing.path=hub:{path}: neither in the local cache nor to be had from the hub: "
            f"{type(error).__name__}; download it first and name the folder"
        ) from error


def load_encoder(folder: Path) -> PairEncoder:
    """Return the encoder of a model folder's own tokenizer."""
    from transformers import AutoTokenizer  # seconds to import; checks of the folder come before it

    return PairEncoder(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def score_pairs(
    encoder: PairEncoder,
    config: WritingRewardConfig,
    prompts: Sequence[str],
    texts: Sequence[str],
    score_rows: Callable[[Sequence[list[int]]], Sequence[float]],
) -> ClassifierScores:
    """Cut every pair into rows that fit the model, have `score_rows` score them all, and aggregate; every engine alike.

    score_rows: rows of at most `max_length_tokens` token ids -> one raw scalar a row, in order; never called with none.
    Raises UserError where a request alone leaves no room for an answer.
    """
    if len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} prompts and {len(texts)} texts: a pair needs one of each")
    windows = [
        cut_windows(
            encoder.encode(prompt, text), config.max_length_tokens, config.window_overlap_tokens, config.max_windows
        )
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    rows = [row for text in windows for row in text.rows]
    scores = list(score_rows(rows)) if rows else []
    if len(scores) != len(rows):
        raise ValueError(f"the engine gave {len(scores)} scores for {len(rows)} rows")
    values, start = [], 0
    for text in windows:
        stop = start + len(text.rows)
        values.append(aggregate(scores[start:stop], text.weights, config.aggregation))
        start = stop
    num_windowed = sum(len(text.rows) > 1 or text.coverage < 1 for text in windows)
    return ClassifierScores(tuple(values), tuple(text.coverage for text in windows), num_windowed)
