"""From a completion to a line of texts.jsonl, and back."""

from typing import Any

import numpy as np
import pytest

from lwz_ray.config import TemplateConfig
from lwz_ray.errors import UserError
from lwz_ray.records import Completion, FinishReason, Prompt, VersionSpan
from lwz_ray.texts import WrittenText, written_text

PROMPT = Prompt("p1", "Write two lines.", "en", None, 0)
MINIMAL = {
    "prompt_id": "7", "prompt": "写两行。", "answer": "雪 is white.", "finish_reason": "stop", "num_tokens": 9,
}  # fmt: skip


def template(arm: Any, prefill: str, stop: str = "</answer>") -> TemplateConfig:
    return TemplateConfig(arm=arm, en="{request}", zh="{request}", chat=False, prefill=prefill, stop=stop)


def completion(text: str, finish_reason: FinishReason = "stop") -> Completion:
    return Completion(
        text, np.arange(5, dtype=np.int32), np.zeros(5, np.float32), finish_reason, (VersionSpan(0, 5, 0),)
    )


def words_of(text: str) -> int:
    return len(text.split())


def test_plan_and_work_come_apart():
    written = "First the fox, then snow.</think><answer>A fox ran.\nSnow fell.</answer>"
    text = written_text(PROMPT, 2, completion(written), template("think", "<think>"), words_of)
    assert text == WrittenText(
        prompt_id="p1",
        prompt="Write two lines.",
        language="en",
        sample_index=2,
        answer="A fox ran.\nSnow fell.",
        think="First the fox, then snow.",
        completion=written,
        finish_reason="stop",
        num_words=5,
        num_think_tokens=5,
        num_tokens=5,
        well_formed=True,
    )
    assert WrittenText.from_dict(text.as_dict(), "line 1") == text


def test_a_text_that_was_cut_keeps_what_it_has():
    direct = written_text(PROMPT, 0, completion("A fox ran", "length"), template("direct", "<answer>"), words_of)
    assert (direct.answer, direct.think, direct.num_words, direct.well_formed) == ("A fox ran", None, 3, False)
    planning = written_text(PROMPT, 0, completion("Only a plan", "length"), template("think", "<think>"), words_of)
    assert (planning.answer, planning.num_words, planning.num_think_tokens) == ("", 0, 3)


def test_without_tags_everything_is_the_work():
    plain = template("direct", "", stop="")
    text = written_text(PROMPT, 0, completion(" A <answer> is a tag. "), plain, words_of)
    assert (text.answer, text.well_formed) == ("A <answer> is a tag.", True)
    assert not written_text(PROMPT, 0, completion("A fox", "length"), plain, words_of).well_formed


def test_a_line_of_another_system_needs_little():
    text = WrittenText.from_dict({**MINIMAL, "num_words": 999}, "line 1")
    assert (text.num_words, text.language, text.sample_index, text.think) == (3, "zh", 0, None)
    assert (text.completion, text.well_formed) == ("雪 is white.", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, r"texts\.jsonl, line 3: answer=None is no text"),
        ({"finish_reason": "eos"}, r"finish_reason='eos' is none of stop, length, repetition, abort"),
        ({"sample_index": -1}, r"sample_index=-1 needs an integer >= 0"),
        ({"num_tokens": True}, r"num_tokens=True needs an integer >= 0"),
        ({"think": 4}, r"think=4 is neither a text nor null"),
        ({"well_formed": 1}, r"well_formed=1 is neither true nor false"),
        ({"think": "A plan."}, r"line 3: a plan \(think\) without num_think_tokens"),
        ({"answer": "cut \ud83d"}, r"line 3: answer holds half of a character at character 5"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        WrittenText.from_dict({**MINIMAL, **change}, "texts.jsonl, line 3")


def test_a_missing_field_is_named():
    row = {name: value for name, value in MINIMAL.items() if name != "answer"}
    with pytest.raises(UserError, match=r"line 1: no 'answer' among \['finish_reason', 'num_tokens', 'prompt', "):
        WrittenText.from_dict(row, "line 1")


@pytest.mark.parametrize("row", [5, None, "prompt_id", [1]])
def test_a_line_that_is_no_object_is_named(row: Any):
    with pytest.raises(UserError, match=r"texts\.jsonl, text 2: a JSON object is needed, got (int|NoneType|str|list)"):
        WrittenText.from_dict(row, "texts.jsonl, text 2")
