"""Prompts from a source, in a deterministic order that one integer resumes.

rows ─▶ bad? ─▶ language ─▶ length range ─▶ tokens ─▶ kept      every row that goes elsewhere is counted
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lwz_ray.config import ColumnsConfig, Config, DataConfig
from lwz_ray.errors import UserError
from lwz_ray.ranges import read_length_range
from lwz_ray.records import Prompt
from lwz_ray.sources import BadRow, Row, read_rows
from lwz_ray.text import detect_language, half_character

LEFT_OUT = ("bad_rows", "other_language", "unfulfillable", "missing_range", "too_long")
LANGUAGES = {"en": "en", "english": "en", "zh": "zh", "chinese": "zh", "zh-cn": "zh", "zh-tw": "zh", "zh-hans": "zh"}
"""Names of languages, in small letters, that data sets use for ours."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of a source and what became of every row.

    `counts` holds `read` and `kept`; `bad_rows`, `other_language`, `unfulfillable` (a range of [0, 0]),
    `missing_range` and `too_long` for the rows left out, so that read = kept + the rest; and, of the kept ones,
    `range_from_request` and `without_range`.
    """

    prompts: list[Prompt]
    counts: dict[str, int]


class PromptOrder:
    """The endless order of prompts: position i, for any i, is one index; each epoch is a new permutation."""

    def __init__(self, num_prompts: int, seed: int, shuffle: bool) -> None:
        if num_prompts < 1:
            raise ValueError(f"num_prompts={num_prompts}: an order needs at least one prompt")
        self.num_prompts, self.seed, self.shuffle = num_prompts, seed, shuffle
        self._epoch: int | None = None
        self._permutation = np.arange(num_prompts)

    def index(self, position: int) -> int:
        """Return the index into the prompts at a position >= 0; the same for the same seed, in any call order."""
        if position < 0:
            raise ValueError(f"position={position}: counted from 0")
        epoch, offset = divmod(position, self.num_prompts)
        if self.shuffle and epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_prompts)
            self._epoch = epoch
        return int(self._permutation[offset])


def load_prompts(
    data: DataConfig,
    on_missing_range: Literal["error", "drop", "abstain"],
    num_tokens: Callable[[Prompt], int],
) -> PromptSet:
    """Read a source; `num_tokens` gives the length of a prompt with its template.

    Raises UserError with file, place and reason for a bad row where `data.on_bad_row` is `error`, for a request
    without a range where `on_missing_range` is `error`, and where no prompt is left.
    """
    prompts: list[Prompt] = []
    counts: Counter[str] = Counter()
    seen: dict[str, str] = {}
    columns_seen: set[str] = set()
    for index, row in enumerate(read_rows(data.path, data.split)):
        counts["read"] += 1
        if isinstance(row.content, dict):
            columns_seen.update(row.content)
        try:
            prompt = _to_prompt(row, index, data, seen)
        except _BadRowError as error:
            if data.on_bad_row == "error":
                raise UserError(
                    f"{data.path}, {row.place}: {error}; correct it, or leave such rows out with data.on_bad_row=skip"
                ) from error
            counts["bad_rows"] += 1
            continue
        if isinstance(prompt, str):
            counts[prompt] += 1
            continue
        prompt = _with_range(prompt, row, data, on_missing_range, counts)
        if prompt is None:
            continue
        if num_tokens(prompt) > data.max_prompt_tokens:
            counts["too_long"] += 1
            continue
        counts["kept"] += 1
        counts["without_range"] += prompt.length_range is None
        prompts.append(prompt)
    _check_columns(data, columns_seen)
    return _checked(data, prompts, counts)


def load_eval_prompts(config: Config, num_tokens: Callable[[Prompt], int]) -> PromptSet:
    """Return the first `eval.num_prompts` prompts of the held-out source, read by the rules of `data`."""
    source = config.data.model_copy(update={"path": config.eval.path, "split": config.eval.split})
    found = load_prompts(source, config.rewards.length.on_missing_range, num_tokens)
    if len(found.prompts) < config.eval.num_prompts:
        raise UserError(
            f"eval.num_prompts={config.eval.num_prompts}, but {config.eval.path} leaves {_account(found.counts)}; "
            "lower it or name a larger source"
        )
    return PromptSet(found.prompts[: config.eval.num_prompts], found.counts)


class _BadRowError(Exception):
    """Why a row is no prompt."""


def _to_prompt(row: Row, index: int, data: DataConfig, seen: dict[str, str]) -> Prompt | str:
    """Return the prompt of a row, or the count it goes to; raises _BadRowError."""
    content, columns = row.content, data.columns
    if isinstance(content, BadRow):
        raise _BadRowError(content.reason)
    if columns.prompt not in content:
        raise _BadRowError(f"no column {columns.prompt!r} among {sorted(content)} (data.columns.prompt names it)")
    text = content[columns.prompt]
    if not isinstance(text, str) or not text.strip():
        raise _BadRowError(f"{columns.prompt}={_short(text)}: a request needs text")
    if (at := half_character(text)) is not None:
        raise _BadRowError(f"{columns.prompt} has half a character at place {at}, which no tokenizer takes")
    length_range = _parse_range(_value(content, columns.length_range), columns)
    language = _language(_value(content, columns.language), text)
    reference = _value(content, columns.reference)
    if reference is not None and (not isinstance(reference, str) or not reference.strip()):
        raise _BadRowError(
            f"{columns.reference}={_short(reference)}: a reference needs text, or null where there is none"
        )
    prompt_id = _value(content, columns.id)
    prompt_id = str(index) if prompt_id is None else str(prompt_id)
    if prompt_id in seen:
        raise _BadRowError(f"{columns.id}={prompt_id!r} is already the id of {seen[prompt_id]}")
    seen[prompt_id] = row.place
    if language not in data.languages:
        return "other_language"
    if length_range == (0, 0):
        return "unfulfillable"
    assert language == "en" or language == "zh"
    return Prompt(prompt_id, text, language, length_range, index, reference)


def _with_range(
    prompt: Prompt, row: Row, data: DataConfig, on_missing_range: str, counts: Counter[str]
) -> Prompt | None:
    """Return the prompt with a range read from its words where the data has none; None where it is left out."""
    if prompt.length_range is not None:
        return prompt
    found = read_length_range(prompt.text)
    if found is not None:
        counts["range_from_request"] += 1
        return replace(prompt, length_range=found)
    if on_missing_range == "error":
        raise UserError(
            f"{data.path}, {row.place}: no length range in the data and none in the request {_short(prompt.text)}; "
            "add one, or set rewards.length.on_missing_range=drop or abstain"
        )
    if on_missing_range == "drop":
        counts["missing_range"] += 1
        return None
    return prompt


def _value(content: dict[str, Any], column: str | None) -> Any:
    return None if column is None else content.get(column)


def _language(value: Any, text: str) -> str:
    if value is None:
        return detect_language(text)
    name = str(value).strip().lower()
    return LANGUAGES.get(name, name)


def _parse_range(value: Any, columns: ColumnsConfig) -> tuple[int, int] | None:
    """Read `[lo, hi]`, `{"range": [lo, hi]}`, or either as JSON text; None stays None, [0, 0] means: drop it."""
    shown = f"{columns.length_range}={_short(value)}"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise _BadRowError(f"{shown}: no JSON ({error.msg}); write [low, high]") from error
    if isinstance(value, dict):
        value = value.get("range")
    elif value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or any(type(v) is not int for v in value):
        raise _BadRowError(f"{shown}: needs two integers [low, high]")
    low, high = value
    if (low, high) != (0, 0) and not 0 < low <= high:
        raise _BadRowError(f"{shown}: needs 0 < low <= high")
    return low, high


def _check_columns(data: DataConfig, seen: set[str]) -> None:
    """Refuse a mapped column that no row has; one that keeps its default name may be absent."""
    for role, column in data.columns.model_dump().items():
        if seen and column is not None and column != role and column not in seen:
            raise UserError(
                f"data.columns.{role}={column!r}: no row of {data.path} has it, there are {', '.join(sorted(seen))}"
            )


def _checked(data: DataConfig, prompts: list[Prompt], counts: Counter[str]) -> PromptSet:
    full = {k: counts[k] for k in ("read", "kept", *LEFT_OUT, "range_from_request", "without_range")}
    if not prompts:
        raise UserError(f"{data.path} is empty: {_account(full)}; name another source, or see docs/configuration.md")
    return PromptSet(prompts, full)


def _account(counts: dict[str, int]) -> str:
    lost = ", ".join(f"{counts[k]} {k}" for k in LEFT_OUT if counts[k])
    return f"{counts['kept']} of {counts['read']} rows" + (f" ({lost})" if lost else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
