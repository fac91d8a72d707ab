"""Repetition in both languages, by literal texts."""

import sys
from types import FrameType
from typing import Any

import pytest

from rewards.repetition import (
    RepetitionScores,
    repeated_ngrams,
    repeated_paragraphs,
    repeated_sentences,
    repetition,
    set_aside_refrains,
    share_of_words,
)

PROSE = (
    "The lamp had burned all night above the harbour. Nobody in the village could say who had lit it, and nobody had "
    "climbed the stairs since the keeper left for the mainland in October."
)
PROSE_ZH = "灯塔的灯亮了一整夜。村里没有人说得清是谁点的，自从十月守塔人去了大陆，再也没有人登上那道楼梯。"


@pytest.mark.parametrize(
    ("text", "ngram", "expected"),
    [
        ("", 4, 0.0),
        ("Hi. Hi. Hi.", 4, 0.0),  # three words hold no 4-gram
        ("one two three four", 4, 0.0),
        ("a b c a b c", 3, 1 / 4),  # abc bca cab abc
        ("A b c a B C", 3, 1 / 4),
        ("go go go go go", 2, 3 / 4),
        ("好好好好好", 2, 3 / 4),
        ("天天向上天天向上", 4, 1 / 5),
        ("春天来了春天来了春天来了", 4, 5 / 9),
        # whole sentences: 2 of 3 and 4 of 6 words stand in copies, more than the share of 4-grams
        ("I see. I see. I see.", 4, 2 / 3),
        ("下雨。下雨。下雨。", 4, 2 / 3),
        ("One line here\nTwo more words\nOne line here", 8, 1 / 3),
        (PROSE, 4, 0.0),
        (PROSE_ZH, 4, 0.0),
    ],
)
def test_repetition(text: str, ngram: int, expected: float) -> None:
    assert repetition(text, ngram) == pytest.approx(expected)


@pytest.mark.parametrize("prose", [PROSE, PROSE_ZH])
def test_a_copied_paragraph_is_half_of_the_text(prose: str) -> None:
    assert repetition(f"{prose}\n\n{prose}", 4) == pytest.approx(0.5)


def test_a_near_copy_is_seen_by_its_phrases() -> None:
    copy = PROSE.replace("burned", "glowed").replace("October", "autumn")
    assert 0.35 < repetition(f"{PROSE} {copy}", 4) < 0.5


@pytest.mark.parametrize(
    ("text", "sentence", "paragraph"),
    [
        ("One two three. Four five.\nOne two three. Four five.", 0.5, 0.5),
        ("One two three. Four five.\nOne two three, four five!", 0.0, 0.5),  # the same words in one sentence
        ("One two three. Four five.\nFour five. Six seven eight.", 0.2, 0.0),
        ("One two. Three four.\n\n  ONE TWO: three four \n", 0.0, 0.5),  # case, punctuation and blanks aside
        ("下雨了。我们回家。\n下雨了，我们回家！", 0.0, 0.5),
        ("One two.\n\n\n\nThree four.", 0.0, 0.0),  # empty lines repeat nothing
        ("Go.\nGo.", 0.0, 0.0),  # fewer than four words
    ],
)
def test_sentences_and_paragraphs(text: str, sentence: float, paragraph: float) -> None:
    assert repeated_sentences(text, 4) == pytest.approx(sentence)
    assert repeated_paragraphs(text, 4) == pytest.approx(paragraph)


VERSE = "Leave a light on the water\nThe river took the road\nLeave a light on the water\nThe train ran far away"


@pytest.mark.parametrize(
    ("text", "free", "kept", "share"),
    [
        (VERSE, 0.5, "Leave a light on the water\nThe river took the road\nThe train ran far away", 6 / 22),
        (VERSE.replace("water\nThe train", "WATER!\nThe train"), 0.5, VERSE[:50] + "\nThe train ran far away", 6 / 22),
        (VERSE, 6 / 22, VERSE[:50] + "\nThe train ran far away", 6 / 22),
        (VERSE, 5 / 22, VERSE, 0.0),  # more than may be set aside
        (VERSE, 0.0, VERSE, 0.0),
        ("la la\n" * 4, 0.5, "la la\nla la", 0.5),  # a loop is longer than the allowance
        (f"{'word ' * 17}\n{'word ' * 17}", 1.0, f"{'word ' * 17}\n{'word ' * 17}", 0.0),  # 17 words: no verse
        (f"{'word ' * 16}\n{'word ' * 16}", 1.0, "word " * 16, 0.5),
        ("A b c. A b c.", 1.0, "A b c. A b c.", 0.0),  # not lines of their own
        ("等风停了就回来，\n我在写信，\n等风停了就回来。", 0.5, "等风停了就回来，\n我在写信，", 7 / 18),
        ("one\n\n\ntwo", 1.0, "one\n\n\ntwo", 0.0),
        ("", 1.0, "", 0.0),
    ],
)
def test_refrains_are_set_aside(text: str, free: float, kept: str, share: float) -> None:
    body, aside = set_aside_refrains(text, free)
    assert body == kept
    assert aside == pytest.approx(share)


def test_share_of_words_weighs_pieces_by_their_words() -> None:
    assert share_of_words(["one two three", "four", "好的"], [False, True, True]) == pytest.approx(3 / 6)
    assert share_of_words(["...", ""], [True, True]) == 0.0


def test_the_combined_score_is_the_largest_share() -> None:
    assert RepetitionScores(0.1, 0.2, 0.3, 0.25, 0.9).combined == 0.3
    assert RepetitionScores(0.1, 0.2, 0.3, 0.4, 0.9).combined == 0.4


def test_an_ngram_of_zero_words_is_refused() -> None:
    with pytest.raises(ValueError, match="ngram=0"):
        repeated_ngrams("a b", 0)


def count_steps(text: str) -> int:
    """Return how many lines of this project's Python measure a text (the work inside one is C, over one piece)."""
    steps = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        return local

    before = sys.gettrace()
    sys.settrace(local)
    try:
        body, _ = set_aside_refrains(text, 0.3)
        repetition(body, 4)
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("sentence", ["Line {} of a text.", "The same line again."])
def test_a_text_four_times_as_long_takes_four_times_the_steps(sentence: str) -> None:
    short, long = ("\n".join(sentence.format(i) for i in range(n)) for n in (200, 800))
    assert 2 < count_steps(long) / count_steps(short) < 4.1
