"""Turn a request into a prompt, and take a completion apart."""

from typing import Literal

import regex

from lwz_ray.config import TemplateConfig
from lwz_ray.records import ParsedText

Arm = Literal["think", "direct"]

SLOT = "{request}"
_SEGMENTS = ("think", "answer")
_TAG = regex.compile(r"</?(?:think|answer)>")
# What each tag opens or closes, and where it has to stand. The direct arm knows no plan: its think tags are strays.
_TAGS: dict[Arm, tuple[str, ...]] = {
    "think": ("<think>", "</think>", "<answer>", "</answer>"),
    "direct": ("<answer>", "</answer>"),
}


def render(template: TemplateConfig, prompt_text: str, language: Literal["en", "zh"]) -> str:
    """Put a request into the template of its language.

    The slot is replaced once and literally, so a request may hold braces or the slot's own name. `chat` and `prefill`
    are applied by the code that tokenises: they need the tokenizer's chat template.
    """
    text = template.zh if language == "zh" else template.en
    return text.replace(SLOT, prompt_text, 1)


def parse_completion(text: str, arm: Arm, prefill: str = "") -> ParsedText:
    """Take apart what the policy wrote; never pass the prompt, which holds the tags too.

    `prefill` is what the completion was made to start with, so it is read as the completion's beginning.
    A tag is in its place where everything before it allows it: `<think>` first, `</think>` in the plan, `<answer>`
    once and outside a plan, `</answer>` in the answer. Any other tag is a stray. With t tags of the arm in place,
    s strays, and o = 1 where other text stands outside the segments or a closed answer is empty,

        segments_found = t / (number of the arm's tags + s + o)

    which is 1 exactly where the text is well formed. A text that a server cut at the stop string has lost its closing
    tag and counts as unclosed: put the tag back before parsing.

    Example: parse_completion("Plan</think><answer>Hi</answer>", "think", "<think>").answer -> "Hi".
    """
    full = prefill + text
    walk = _Walk(arm)
    position = 0
    for match in _TAG.finditer(full):
        walk.text(full[position : match.start()])
        walk.tag(match.group())
        position = match.end()
    walk.text(full[position:])
    return walk.result()


class _Walk:
    """Read text and tags from left to right; `inside` names the segment that is open."""

    def __init__(self, arm: Arm) -> None:
        self._expected = _TAGS[arm]
        self._segments: dict[str, list[str]] = {}
        self._in_place: set[str] = set()
        self._strays = 0
        self._outside = False
        self._inside = ""

    def text(self, piece: str) -> None:
        if self._inside:
            self._segments[self._inside].append(piece)
        elif piece.strip():
            self._outside = True

    def tag(self, tag: str) -> None:
        name = tag.strip("</>")
        if self._fits(tag, name):
            self._in_place.add(tag)
            self._inside = "" if tag.startswith("</") else name
            self._segments.setdefault(name, [])
            return
        self._strays += 1
        # A stray inside a segment is part of what was written there; it is not taken out of the text.
        if self._inside:
            self._segments[self._inside].append(tag)

    def _fits(self, tag: str, name: str) -> bool:
        if tag not in self._expected or tag in self._in_place:
            return False
        if tag.startswith("</"):
            return self._inside == name
        return not self._inside and not (name == "think" and "answer" in self._segments)

    def result(self) -> ParsedText:
        think, answer = ("".join(s).strip() if (s := self._segments.get(k)) is not None else None for k in _SEGMENTS)
        empty = "</answer>" in self._in_place and not answer
        found = len(self._in_place) / (len(self._expected) + self._strays + (self._outside or empty))
        return ParsedText(think=think, answer=answer, well_formed=found == 1.0, segments_found=found)
