"""Rendering and parsing, by literal texts of both arms."""

from pathlib import Path

import pytest
import yaml

from lwz_ray.config import TemplateConfig
from lwz_ray.records import ParsedText
from lwz_ray.templates import parse_completion, render
from lwz_ray.text import detect_language

CONF = Path(__file__).parents[3] / "conf" / "template"
TEMPLATE = TemplateConfig(
    arm="direct", en="Do: {request}!", zh="做：{request}！", chat=False, prefill="<answer>", stop="</answer>"
)


def test_the_request_fills_the_slot_of_its_language() -> None:
    assert render(TEMPLATE, "a tale", "en") == "Do: a tale!"
    assert render(TEMPLATE, "写故事", "zh") == "做：写故事！"


@pytest.mark.parametrize("text", ["{x} {} {{0}}", "{request}", r"\1 \g<0> $1", "</answer>", "%s"])
def test_the_request_is_put_in_literally(text: str) -> None:
    assert render(TEMPLATE, text, "en") == f"Do: {text}!"


# text, prefill, think, answer, well_formed, segments_found
THINK = [
    ("<think>P</think><answer>A b.</answer>", "", "P", "A b.", True, 1.0),
    ("\n P </think>\n\n<answer>\nA\n</answer>\n", "<think>", "P", "A", True, 1.0),
    ("<think></think><answer>A</answer>", "", "", "A", True, 1.0),
    ("<think>P</think><answer>A", "", "P", "A", False, 3 / 4),  # cut by length
    ("<think>P</think><answer>A</answ", "", "P", "A</answ", False, 3 / 4),
    ("<think>P</think>", "", "P", None, False, 2 / 4),
    ("<think>P <answer>A</answer>", "", "P <answer>A</answer>", None, False, 1 / 6),  # inside an unclosed plan
    ("just text", "", None, None, False, 0.0),
    ("", "", None, None, False, 0.0),
    ("", "<think>", "", None, False, 1 / 4),
    ("<answer>A</answer>", "", None, "A", False, 2 / 4),
    ("P</think><answer>A</answer>", "", None, "A", False, 2 / 6),  # a stray tag and text outside
    ("<answer>A</answer><think>P</think>", "", None, "A", False, 2 / 7),  # the wrong order
    ("<think>P</think><answer>A</answer> more", "", "P", "A", False, 4 / 5),
    ("Hi <think>P</think><answer>A</answer>", "", "P", "A", False, 4 / 5),
    ("<think>P</think> so <answer>A</answer>", "", "P", "A", False, 4 / 5),
    ("<think>P</think><answer>A</answer><answer>B</answer>", "", "P", "A", False, 4 / 7),
    ("<think>P</think><think>Q</think><answer>A</answer>", "", "P", "A", False, 4 / 7),
    ("<think>P</think><answer> \n</answer>", "", "P", "", False, 4 / 5),  # an empty answer
    ("<think>P</think><answer>A<think>B</answer>", "", "P", "A<think>B", False, 4 / 5),
]
DIRECT = [
    ("<answer>A</answer>", "", None, "A", True, 1.0),
    ("A</answer>", "<answer>", None, "A", True, 1.0),
    ("A", "<answer>", None, "A", False, 1 / 2),
    ("A", "", None, None, False, 0.0),
    ("A</answer>", "", None, None, False, 0.0),
    (" </answer>", "<answer>", None, "", False, 2 / 3),
    ("A</answer> bye", "<answer>", None, "A", False, 2 / 3),
    ("<answer>A</answer>", "<answer>", None, "<answer>A", False, 2 / 3),
    ("<think>P</think><answer>A</answer>", "", None, "A", False, 2 / 5),
    ("A <think>P</think></answer>", "<answer>", None, "A <think>P</think>", False, 2 / 4),
]


@pytest.mark.parametrize(("text", "prefill", "think", "answer", "well_formed", "found"), THINK)
def test_think_arm(
    text: str, prefill: str, think: str | None, answer: str | None, well_formed: bool, found: float
) -> None:
    assert parse_completion(text, "think", prefill) == ParsedText(think, answer, well_formed, found)


@pytest.mark.parametrize(("text", "prefill", "think", "answer", "well_formed", "found"), DIRECT)
def test_direct_arm(
    text: str, prefill: str, think: str | None, answer: str | None, well_formed: bool, found: float
) -> None:
    assert parse_completion(text, "direct", prefill) == ParsedText(think, answer, well_formed, found)


@pytest.mark.parametrize("name", ["think", "direct"])
def test_the_shipped_templates(name: str) -> None:
    template = TemplateConfig(**yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")))
    assert template.arm == name
    assert template.stop == "</answer>"
    assert detect_language(template.en) == "en"
    assert detect_language(template.zh) == "zh"
    for language in ("en", "zh"):
        prompt = render(template, "REQUEST", language)
        assert prompt.count("REQUEST") == 1
        assert "{request}" not in prompt
        tags = ("<think>", "</think>", "<answer>", "</answer>")[0 if name == "think" else 2 :]
        assert all(tag in prompt for tag in tags)
    wrote = "P</think><answer>A</answer>" if name == "think" else "A</answer>"
    assert parse_completion(wrote, template.arm, template.prefill).well_formed
