"""Rows of published chat logs: the first request of each conversation, and what the data says about it.

WildChat  conversation_hash, conversation [{role, content, language, toxic, redacted}], language, toxic, redacted,
          openai_moderation [{flagged}]
LMSYS     conversation_id, conversation [{role, content}], language, openai_moderation [{flagged}], redacted
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import regex

from lwz_ray.config_curate import LogFormat
from lwz_ray.data import LANGUAGES
from lwz_ray.errors import UserError
from lwz_ray.text import half_character, units

ID_COLUMNS: dict[LogFormat, str] = {"wildchat": "conversation_hash", "lmsys": "conversation_id"}
"""The column that tells the formats apart."""
_HAN, _LATIN = regex.compile(r"\p{Han}"), regex.compile(r"\p{Latin}|\p{Nd}")


class BadLogError(Exception):
    """Why a row is no conversation."""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """The first user turn of a conversation."""

    conversation_id: str | None
    text: str
    """Without white space at its ends; empty where there is no user turn."""
    declared: str | None
    """Language as the data names it, en and zh by these codes; None where it does not say."""
    toxic: bool
    """Flagged by the data, in any of its ways, anywhere in the conversation."""
    redacted: bool
    """Personal data was removed from the conversation."""
    has_flags: bool
    """False: the row says neither, so nothing is known."""


def tell_format(content: Mapping[str, Any], path: str) -> LogFormat:
    """Return the format of a source by the columns of a row; raises UserError where they are of neither."""
    found: list[LogFormat] = [name for name, column in ID_COLUMNS.items() if column in content]
    if len(found) != 1:
        raise UserError(
            f"curate.chat_logs.paths: {path} has the columns {', '.join(sorted(content))}; a chat log has "
            f"{' or '.join(ID_COLUMNS.values())}, else name its format with curate.chat_logs.format=wildchat or lmsys"
        )
    return found[0]


def first_request(content: Mapping[str, Any], log_format: LogFormat) -> LoggedRequest:
    """Return the first user turn of a row; raises BadLogError where the row is no conversation.

    A conversation counts as flagged where any of its turns is: what follows shows what was asked for.
    """
    if "conversation" not in content:
        raise BadLogError(f"no column 'conversation' among {', '.join(sorted(content))}")
    turns = content["conversation"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadLogError(f"conversation={_short(turns)}: a list of turns with role and content is needed")
    turn = next((turn for turn in turns if turn.get("role") == "user"), None)
    text = "" if turn is None else turn.get("content")
    if not isinstance(text, str):
        raise BadLogError(f"content={_short(text)} of the first user turn: text is needed")
    if (at := half_character(text)) is not None:
        raise BadLogError(f"content of the first user turn: half of a character at {at}, which no file can hold")
    # The turn's own language, where there is one, is closer than the conversation's.
    declared = (turn or {}).get("language") or content.get("language")
    conversation_id = content.get(ID_COLUMNS[log_format])
    places = [content, *turns]
    toxic = [_flag(place, "toxic") for place in places] + _moderation(content)
    redacted = [_flag(place, "redacted") for place in places]
    return LoggedRequest(
        None if conversation_id is None else str(conversation_id),
        text.strip(),
        None if declared is None else _code(declared),
        True in toxic,
        True in redacted,
        any(flag is not None for flag in toxic + redacted),
    )


def language_of(declared: str | None, text: str) -> Literal["en", "zh"] | None:
    """Return the language that the data names and the text is written in; None for others and where they disagree.

    Chinese: at least half of the words are Chinese characters; English: at least half are Latin words or numbers. Where
    the data names no language, other languages in Latin letters pass for English.
    """
    pieces = units(text)
    if declared not in (None, "en", "zh") or not pieces:
        return None
    if 2 * sum(1 for piece in pieces if _HAN.match(piece)) >= len(pieces):
        found = "zh"
    elif 2 * sum(1 for piece in pieces if _LATIN.match(piece)) >= len(pieces):
        found = "en"
    else:
        return None
    return found if declared in (None, found) else None


def _code(name: Any) -> str:
    shown = str(name).strip().lower()
    return LANGUAGES.get(shown, shown)


def _flag(place: Mapping[str, Any], column: str) -> bool | None:
    """Return a flag, None where the data does not say; anything else is no flag, and must not pass for "no"."""
    value = place.get(column)
    if value is not None and not isinstance(value, bool):
        raise BadLogError(f"{column}={_short(value)}: true or false is needed")
    return value


def _moderation(content: Mapping[str, Any]) -> list[bool | None]:
    found = content.get("openai_moderation")
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise BadLogError(f"openai_moderation={_short(found)}: a list with an object for each turn is needed")
    return [_flag(item, "flagged") for item in found]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
