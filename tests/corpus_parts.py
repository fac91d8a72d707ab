"""Parts of the tests of documents and chat pairs: a tokenizer whose tokens are words, files, and configs."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from launch.compose import compose
from lwz_ray.config import Config

EOS = 0
"""The id of the end token; word `wN` has the id N + 2, and 1 stands for every other word."""


@cache
def word_tokenizer(num_words: int = 2000) -> PreTrainedTokenizerFast:
    """Return a real tokenizer that knows the words w0, w1, …: one token each."""
    vocabulary = {"</s>": EOS, "<unk>": 1} | {f"w{i}": i + 2 for i in range(num_words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def words(first: int, num: int) -> str:
    """Return a text of `num` words that begins with word `first`."""
    return " ".join(f"w{i}" for i in range(first, first + num))


def write_lines(path: Path, rows: Sequence[Any]) -> str:
    """Write a .jsonl file; a text is written as it is, so that a line can be broken on purpose."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def write_documents(path: Path, texts: Sequence[str]) -> str:
    return write_lines(path, [{"text": text} for text in texts])


@cache
def base_config(stage: str) -> Config:
    return compose([f"stage={stage}", "template=request"])


def changed(stage: str, section: Mapping[str, Any], length: int = 8, **top: Any) -> Config:
    """Return a config of the stage whose section (`corpus` or `sft`) has some other values."""
    tree = base_config(stage).model_dump()
    name = "corpus" if stage == "pretrain" else "sft"
    tree[name] |= section
    tree["model"] |= {"max_length_tokens": length}
    tree["learners"] |= {"microbatch_tokens": max(length, 8)}
    return Config.model_validate(tree | top)
