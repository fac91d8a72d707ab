"""Good texts, the side of a preference pair that is chosen: cleaned, judged, and split by prompt.

texts ─▶ closed ─▶ language ─▶ sentences ─▶ repetition ─▶ new ─▶ good     each text that goes elsewhere is counted
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from lwz_ray.config import Config
from lwz_ray.degradations.passages import ends_closed, split_passages
from lwz_ray.errors import UserError
from lwz_ray.records import Completion, Prompt
from lwz_ray.sources import BadRow, Row, read_rows
from lwz_ray.templates import Arm, parse_completion
from lwz_ray.text import detect_language

Split = Literal["train", "heldout"]
REASONS = ("not_closed", "open_end", "other_language", "few_sentences", "repetition", "duplicate")
"""Why a text is left out, in the order of the checks."""
_TAG = regex.compile(r"</?(?:think|answer)>")
_BLANK = regex.compile(r"[ \t]+(?=\n)|(?<=\n\n)\n+")


@dataclass(frozen=True, slots=True)
class GoodText:
    """A text that answers its prompt, as written down."""

    prompt_id: str
    """All texts to a prompt share it: the source of their pairs."""
    prompt: str
    sample: int
    """Counts the texts to one prompt."""
    language: Literal["en", "zh"]
    text: str


def clean(text: str) -> str:
    """Return a text without tags of the template, white space at line ends and runs of empty lines."""
    return _BLANK.sub("", _TAG.sub("", text)).strip()


def written_text(completion: Completion, arm: Arm, prefill: str, stop: str) -> str | None:
    """Return what a completion says, cleaned; None where it was cut or lacks its form.

    A template without a `stop` string asks for plain text, which the model ends by itself: all of it counts.
    """
    if completion.finish_reason != "stop":
        return None
    if not stop:
        return clean(prefill + completion.text)
    parsed = parse_completion(completion.text, arm, prefill)
    return clean(parsed.answer) if parsed.well_formed and parsed.answer else None


@dataclass(frozen=True, slots=True)
class Sieve:
    """Tells good texts from others."""

    min_sentences: int
    max_repetition: float
    repetition: Callable[[str], float]
    """The share of a text that it wrote before, in [0, 1]."""

    def reason_against(self, text: str | None, language: str, earlier: Collection[str]) -> str | None:
        """Return why a text is left out, one of REASONS, or None for a good one.

        earlier: the good texts to the same prompt so far.
        """
        if not text:
            return "not_closed"
        if not ends_closed(text):
            return "open_end"
        if detect_language(text) != language:
            return "other_language"
        if len(split_passages(text)) < self.min_sentences:
            return "few_sentences"
        if self.repetition(text) > self.max_repetition:
            return "repetition"
        return "duplicate" if text in earlier else None

    def sift(self, prompt: Prompt, texts: Sequence[str | None]) -> tuple[list[GoodText], dict[str, int]]:
        """Return the good ones of the texts to one prompt (None: not closed), and how many others by reason."""
        good: list[GoodText] = []
        left_out: Counter[str] = Counter()
        for sample, text in enumerate(texts):
            reason = self.reason_against(text, prompt.language, [g.text for g in good])
            if reason is not None:
                left_out[reason] += 1
            elif text is not None:
                good.append(GoodText(prompt.prompt_id, prompt.text, sample, prompt.language, text))
        return good, dict(left_out)


def load_texts(config: Config) -> tuple[list[tuple[Prompt, list[str]]], dict[str, int]]:
    """Read `curate.texts_path` (columns prompt, text; id where there is one): each prompt with its texts, and counts.

    Rows with one prompt are texts to one prompt, which has the first row's id. Raises UserError with file, place and
    reason for a bad row where `data.on_bad_row` is `error`, and where no text is left.
    """
    path = config.curate.texts_path
    assert path is not None
    found: dict[str, tuple[Prompt, list[str]]] = {}
    ids: set[str] = set()
    counts = {"read": 0, "bad_rows": 0, "other_language": 0, "kept": 0}
    for index, row in enumerate(read_rows(path, config.data.split)):
        counts["read"] += 1
        content = _row(row)
        if isinstance(content, str):
            if config.data.on_bad_row == "error":
                raise UserError(
                    f"curate.texts_path={path}, {row.place}: {content}; correct it, or leave such rows out with "
                    "data.on_bad_row=skip"
                )
            counts["bad_rows"] += 1
            continue
        request, text, given = content
        language = detect_language(text)
        if language not in config.data.languages:
            counts["other_language"] += 1
            continue
        counts["kept"] += 1
        if request not in found:
            prompt_id = f"row-{index}" if given is None or given in ids else given
            ids.add(prompt_id)
            found[request] = (Prompt(prompt_id, request, language, None, index), [])
        found[request][1].append(clean(text))
    if not found:
        raise UserError(f"curate.texts_path={path}: none of its {counts['read']} texts is left; name another file")
    return list(found.values()), counts


def _row(row: Row) -> tuple[str, str, str | None] | str:
    """Return prompt, text and id of a row, or what is wrong with it."""
    if isinstance(row.content, BadRow):
        return row.content.reason
    for column in ("prompt", "text"):
        value = row.content.get(column)
        if not isinstance(value, str) or not value.strip():
            return f"column {column!r} needs text"
    given = row.content.get("id")
    return row.content["prompt"], row.content["text"], None if given is None else str(given)


def split_prompts(prompt_ids: Sequence[str], held_out_share: float, seed: int) -> dict[str, Split]:
    """Return the side of each prompt: held out is the share, at least one, that a hash of seed and id puts first.

    Raises UserError for fewer than two prompts.
    """
    ids = list(dict.fromkeys(prompt_ids))
    if len(ids) < 2:
        raise UserError(f"curate: {len(ids)} prompt; a split by prompt needs at least 2, give more texts or prompts")
    num = min(max(1, round(held_out_share * len(ids))), len(ids) - 1)
    ranked = sorted(ids, key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
    return {i: "heldout" if k < num else "train" for k, i in enumerate(ranked)}
