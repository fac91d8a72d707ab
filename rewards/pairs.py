"""Turn prompts and answers into the tokens that a reward model reads, alike for every engine."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwz_ray.config import WritingRewardConfig
from lwz_ray.errors import UserError

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class ClassifierScores:
    """What a reward model answers to one request."""

    values: tuple[float, ...]
    """Raw scalar outputs, one a pair, no activation applied."""
    num_truncated: int
    """Pairs whose answer was cut to fit `max_length_tokens`."""


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """Token ids of one request, one row a pair."""

    token_ids: tuple[list[int], ...]
    num_truncated: int


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


class PairEncoder:
    """Formats pairs through the tokenizer's chat template, or as "prompt, blank line, answer" where it has none.

    A pair longer than `max_length_tokens` loses the end of its answer. The request stays, since quality is judged
    against it, and so do the template's closing tokens, since the scalar is read from the last one.
    """

    def __init__(self, folder: Path, max_length_tokens: int) -> None:
        from transformers import AutoTokenizer  # seconds to import; checks of the folder come before it

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._chat = self._tokenizer.chat_template is not None
        self._max_length = max_length_tokens

    def encode(self, prompts: Sequence[str], texts: Sequence[str]) -> EncodedPairs:
        """Return token ids of at most `max_length_tokens` a pair.

        Raises UserError where a request alone leaves no room for an answer.
        """
        if len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} prompts and {len(texts)} texts: a pair needs one of each")
        rows = [self._encode(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        return EncodedPairs(tuple(ids for ids, _ in rows), sum(cut for _, cut in rows))

    def _encode(self, prompt: str, text: str) -> tuple[list[int], bool]:
        ids = self._format(prompt, text)
        if len(ids) <= self._max_length:
            return ids, False
        answer = self._tokenizer(text, add_special_tokens=False).input_ids
        keep = len(answer)
        # Cutting may change how the seam is split into tokens, so the length is measured again after each cut.
        while len(ids) > self._max_length:
            keep -= len(ids) - self._max_length
            if keep <= 0:
                raise UserError(
                    f"rewards.writing.max_length_tokens={self._max_length} leaves no room for an answer to a request "
                    f"of {len(self._format(prompt, ''))} tokens; raise it or lower data.max_prompt_tokens"
                )
            ids = self._format(prompt, self._tokenizer.decode(answer[:keep]))
        return ids, True

    def _format(self, prompt: str, text: str) -> list[int]:
        if not self._chat:
            return list(self._tokenizer(f"{prompt}\n\n{text}").input_ids)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        formatted = self._tokenizer.apply_chat_template(turns, tokenize=False)
        return list(self._tokenizer(formatted, add_special_tokens=False).input_ids)
