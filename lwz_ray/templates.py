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


class TagOrder:
    """Takes the tags of a text from left to right and tells those in their place from strays."""

    def __init__(self, arm: Arm) -> None:
        self.expected = _TAGS[arm]
        self.in_place: set[str] = set()
        self.inside = ""
        """The segment that is open: think, answer, or none of them."""

    def take(self, tag: str) -> bool:
        """Say whether a tag is in its place; if so it opens or closes its segment."""
        if not self._fits(tag):
            return False
        self.in_place.add(tag)
        self.inside = "" if tag.startswith("</") else _name(tag)
        return True

    def _fits(self, tag: str) -> bool:
        if tag not in self.expected or tag in self.in_place:
            return False
        if tag.startswith("</"):
            return self.inside == _name(tag)
        return not self.inside and not (tag == "<think>" and "<answer>" in self.in_place)


def _name(tag: str) -> str:
    return tag.strip("</>")


class _Walk:
    """Read text and tags from left to right, and keep what stands in the segments."""

    def __init__(self, arm: Arm) -> None:
        self._order = TagOrder(arm)
        self._segments: dict[str, list[str]] = {}
        self._strays = 0
        self._outside = False

    def text(self, piece: str) -> None:
        if self._order.inside:
            self._segments[self._order.inside].append(piece)
        elif piece.strip():
            self._outside = True

    def tag(self, tag: str) -> None:
        if self._order.take(tag):
            self._segments.setdefault(_name(tag), [])
            return
        self._strays += 1
        # A stray inside a segment is part of what was written there; it is not taken out of the text.
        if self._order.inside:
            self._segments[self._order.inside].append(tag)

    def result(self) -> ParsedText:
        think, answer = ("".join(s).strip() if (s := self._segments.get(k)) is not None else None for k in _SEGMENTS)
        in_place, expected = self._order.in_place, self._order.expected
        empty = "</answer>" in in_place and not answer
        found = len(in_place) / (len(expected) + self._strays + (self._outside or empty))
        return ParsedText(think=think, answer=answer, well_formed=found == 1.0, segments_found=found)
