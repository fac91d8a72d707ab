"""What of a text reaches standard output, and what goes beside it."""

import io

import pytest

from launch.terminal_stream import TerminalStream
from lwz_ray.config import TemplateConfig
from lwz_ray.templates import parse_completion

PLAN_AND_WORK = "A plan: 1 < 2.</think>\n<answer>\nDear Ann,\n5 < 6 and </b>.</answer>"


def template(arm, prefill: str, stop: str = "</answer>") -> TemplateConfig:
    return TemplateConfig(arm=arm, en="{request}", zh="{request}", chat=False, prefill=prefill, stop=stop)


def shown(of: TemplateConfig, text: str, size: int) -> tuple[str, str]:
    out, aside = io.StringIO(), io.StringIO()
    stream = TerminalStream(of, out, aside)
    for start in range(0, len(text), size):
        stream.feed(text[start : start + size])
    stream.close()
    return out.getvalue(), aside.getvalue()


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_work_alone_is_on_standard_output(size: int):
    out, aside = shown(template("think", "<think>"), PLAN_AND_WORK, size)
    assert out == "Dear Ann,\n5 < 6 and </b>.\n"
    assert aside == "A plan: 1 < 2.\n"


def test_pieces_are_shown_at_once_but_for_what_may_be_a_tag():
    out = io.StringIO()
    stream = TerminalStream(template("direct", "<answer>"), out, io.StringIO())
    stream.feed("One <b> two </ans")
    assert out.getvalue() == "One <b> two "
    stream.feed("ers")
    assert out.getvalue() == "One <b> two </ansers"
    stream.feed(" <thin")
    stream.close()
    assert out.getvalue() == "One <b> two </ansers <thin\n"


def test_a_template_without_tags_shows_them():
    assert shown(template("direct", "", stop=""), "Use <answer> here.\n", 4) == ("Use <answer> here.\n", "")


@pytest.mark.parametrize(
    ("arm", "text"),
    [
        ("direct", "<answer>Write <answer> first, then <think>, then more.</answer> Bye."),
        ("think", "<think>First <answer> it</answer>, then end.</think><answer>A </think> and <think> B.</answer>"),
        ("think", "Well, <answer>no plan.</answer><think>Too late.</think><answer>Twice.</answer>"),
        ("think", "<think>Never <answer>closed."),
    ],
)
def test_tags_out_of_place_are_read_as_the_parser_reads_them(arm, text: str):
    for size in (1, 1000):
        out, _ = shown(template(arm, ""), text, size)
        assert out.strip() == (parse_completion(text, arm).answer or "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_plan_is_dim_on_a_terminal():
    terminal = Terminal()
    stream = TerminalStream(template("think", "<think>"), io.StringIO(), terminal)
    stream.feed("x</think><answer>y")
    stream.close()
    assert terminal.getvalue() == "\x1b[2mx\x1b[0m\n"
