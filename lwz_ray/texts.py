"""Texts that a model wrote to requests, as `stage=generate` leaves them and `stage=evaluate` reads them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lwz_ray.config import TemplateConfig
from lwz_ray.errors import UserError
from lwz_ray.records import Completion, Prompt
from lwz_ray.templates import parse_completion
from lwz_ray.text import count_words, detect_language, half_character

REQUIRED = ("prompt_id", "prompt", "answer", "finish_reason", "num_tokens")
"""Fields that a line must have; the others of another system's text follow from them."""
FINISH_REASONS = ("stop", "length", "repetition", "abort")
_TEXTS = ("prompt_id", "prompt", "language", "answer", "completion")


@dataclass(frozen=True, slots=True)
class WrittenText:
    """One line of `texts.jsonl`."""

    prompt_id: str
    prompt: str
    language: str
    sample_index: int
    answer: str
    """The work itself; empty where no answer segment was found."""
    think: str | None
    """The plan; None where there is none."""
    completion: str
    """Everything that the model wrote, tags included."""
    finish_reason: str
    """stop | length | repetition | abort"""
    num_words: int
    """Of the answer, by `lwz_ray.text.count_words`."""
    num_think_tokens: int
    num_tokens: int
    """Of the completion."""
    well_formed: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Any, place: str) -> "WrittenText":
        """Return the text of a line; `place` names it in the UserError that a wrong one raises.

        Of REQUIRED alone it is the text of a system without a plan and without tags; a line with a plan says how many
        tokens that has. Words are counted here, whatever the line says.
        """
        if not isinstance(row, Mapping):
            raise UserError(f"{place}: a JSON object is needed, got {type(row).__name__}")
        missing = [name for name in REQUIRED if name not in row]
        if missing:
            raise UserError(f"{place}: no {missing[0]!r} among {sorted(row)}; a text needs {', '.join(REQUIRED)}")
        if isinstance(row.get("think"), str) and "num_think_tokens" not in row:
            raise UserError(f"{place}: a plan (think) without num_think_tokens; add them, or set think to null")
        found = {"sample_index": 0, "think": None, "num_think_tokens": 0, "well_formed": True, **row}
        found.setdefault("completion", found["answer"])
        found.setdefault("language", None)
        if found["language"] is None and isinstance(found["prompt"], str):
            found["language"] = detect_language(found["prompt"])
        _check_fields(found, place)
        found["num_words"] = count_words(found["answer"])
        return cls(**{name: found[name] for name in cls.__slots__})


def _check_fields(found: Mapping[str, Any], place: str) -> None:
    """Raise UserError on the first field that is not of its kind."""
    for name in _TEXTS:
        if not isinstance(found[name], str):
            raise UserError(f"{place}: {name}={found[name]!r} is no text")
    if found["think"] is not None and not isinstance(found["think"], str):
        raise UserError(f"{place}: think={found['think']!r} is neither a text nor null")
    for name in (*_TEXTS, "think"):
        if found[name] is not None and (at := half_character(found[name])) is not None:
            raise UserError(f"{place}: {name} holds half of a character at character {at}; remove it")
    for name in ("sample_index", "num_tokens", "num_think_tokens"):
        if type(found[name]) is not int or found[name] < 0:
            raise UserError(f"{place}: {name}={found[name]!r} needs an integer >= 0")
    if not isinstance(found["well_formed"], bool):
        raise UserError(f"{place}: well_formed={found['well_formed']!r} is neither true nor false")
    if found["finish_reason"] not in FINISH_REASONS:
        raise UserError(f"{place}: finish_reason={found['finish_reason']!r} is none of {', '.join(FINISH_REASONS)}")


def written_text(
    prompt: Prompt,
    sample_index: int,
    completion: Completion,
    template: TemplateConfig,
    num_tokens: Callable[[str], int],
) -> WrittenText:
    """Return what a completion says, its plan and its work apart; num_tokens: of a plain text.

    A template without a `stop` string asks for plain text: all of it is the answer, well formed where the model ended
    it by itself.
    """
    if template.stop:
        parsed = parse_completion(completion.text, template.arm, template.prefill)
        think, answer, well_formed = parsed.think, parsed.answer or "", parsed.well_formed
    else:
        think, answer = None, (template.prefill + completion.text).strip()
        well_formed = bool(answer) and completion.finish_reason == "stop"
    return WrittenText(
        prompt_id=prompt.prompt_id,
        prompt=prompt.text,
        language=prompt.language,
        sample_index=sample_index,
        answer=answer,
        think=think,
        completion=completion.text,
        finish_reason=completion.finish_reason,
        num_words=count_words(answer),
        num_think_tokens=num_tokens(think) if think else 0,
        num_tokens=completion.num_tokens,
        well_formed=well_formed,
    )
