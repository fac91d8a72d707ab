"""Rows of chat logs: first requests, flags and languages as two published formats hold them."""

from typing import Any

import pytest

from lwz_ray.chat_logs import BadLogError, first_request, language_of, tell_format
from lwz_ray.errors import UserError


def wildchat(**changes: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": " Write a play. ", "language": "English", "toxic": False, "redacted": False},
        {"role": "assistant", "content": "Act one.", "language": "English", "toxic": False, "redacted": False},
        {"role": "user", "content": "Longer.", "language": "English", "toxic": False, "redacted": False},
    ]
    row = {"conversation_hash": "ab12", "conversation": turns, "language": "Spanish", "toxic": False, "redacted": False}
    return row | {"openai_moderation": [{"flagged": False}]} | changes


def lmsys(**changes: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "写一首诗"}, {"role": "assistant", "content": "好"}]
    row = {"conversation_id": "c9", "conversation": turns, "language": "Chinese", "redacted": False}
    return row | {"openai_moderation": [{"flagged": False, "categories": {}}, {"flagged": False}]} | changes


def test_wildchat_gives_the_first_user_turn_and_its_own_language():
    found = first_request(wildchat(), "wildchat")
    assert (found.conversation_id, found.text, found.declared) == ("ab12", "Write a play.", "en")
    assert (found.toxic, found.redacted, found.has_flags) == (False, False, True)


def test_lmsys_gives_the_first_user_turn_and_the_conversations_language():
    found = first_request(lmsys(), "lmsys")
    assert (found.conversation_id, found.text, found.declared) == ("c9", "写一首诗", "zh")
    assert (found.toxic, found.redacted, found.has_flags) == (False, False, True)


def test_a_leading_system_turn_is_passed_over():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go on."}]
    assert first_request(lmsys(conversation=turns), "lmsys").text == "Go on."


@pytest.mark.parametrize("turns", [[], [{"role": "assistant", "content": "Hello"}], [{"role": "user", "content": " "}]])
def test_without_a_user_turn_there_is_no_request(turns: list[Any]):
    assert first_request(lmsys(conversation=turns), "lmsys").text == ""


@pytest.mark.parametrize(
    ("row", "toxic", "redacted"),
    [
        (wildchat(toxic=True), True, False),
        (wildchat(redacted=True), False, True),
        (wildchat(conversation=[{"role": "user", "content": "a"}, {"role": "assistant", "toxic": True}]), True, False),
        (wildchat(openai_moderation=[{"flagged": False}, {"flagged": True}]), True, False),
        (lmsys(openai_moderation=[{"flagged": True}]), True, False),
        (lmsys(redacted=True), False, True),
    ],
)  # fmt: skip
def test_any_flag_of_the_conversation_counts(row: dict[str, Any], toxic: bool, redacted: bool):
    found = first_request(row, "wildchat")
    assert (found.toxic, found.redacted) == (toxic, redacted)


def test_a_row_without_flags_says_so():
    row = {"conversation_id": "c", "conversation": [{"role": "user", "content": "Hi"}]}
    assert first_request(row, "lmsys").has_flags is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conversation": "Hi"}, "a list of turns"),
        ({"conversation": ["Hi"]}, "a list of turns"),
        ({"conversation": [{"role": "user", "content": None}]}, "text is needed"),
        ({"conversation": [{"role": "user", "content": "A \ud83d"}]}, "half of a character at 3"),
        ({"toxic": "no"}, "toxic='no': true or false"),
        ({"openai_moderation": {"flagged": True}}, "a list with an object for each turn"),
        ({"openai_moderation": [{"flagged": 1}]}, "flagged=1: true or false"),
    ],
)
def test_what_is_no_conversation_is_refused(changes: dict[str, Any], said: str):
    with pytest.raises(BadLogError, match=said):
        first_request(wildchat(**changes), "wildchat")


def test_a_row_without_conversation_names_its_columns():
    with pytest.raises(BadLogError, match="no column 'conversation' among conversation_id, text"):
        first_request({"conversation_id": "c", "text": "t"}, "lmsys")


def test_the_format_is_told_by_its_columns():
    assert tell_format(wildchat(), "a.jsonl") == "wildchat"
    assert tell_format(lmsys(), "a.jsonl") == "lmsys"
    with pytest.raises(UserError, match=r"a\.jsonl has the columns prompt; .*conversation_hash or conversation_id"):
        tell_format({"prompt": "p"}, "a.jsonl")


@pytest.mark.parametrize(
    ("declared", "text", "expected"),
    [
        ("en", "Write a poem", "en"),
        ("zh", "写一首诗", "zh"),
        ("en", "写一首诗", None),  # the data and the text disagree
        ("zh", "Write a poem", None),
        ("en", "Translate 你好 into a poem about greetings", "en"),
        ("zh", "用 Python 写一个故事", "zh"),
        ("fr", "Écris un poème", None),
        ("japanese", "詩を書いて", None),
        (None, "Write 3 poems", "en"),
        (None, "写诗", "zh"),
        (None, "Напиши сказку", None),
        (None, "!!!", None),
    ],
)
def test_language(declared: str | None, text: str, expected: str | None):
    assert language_of(declared, text) == expected
