"""Repetition in both languages, by literal texts."""

import time

import pytest

from rewards.repetition import repetition

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


def test_an_ngram_of_zero_words_is_refused() -> None:
    with pytest.raises(ValueError, match="ngram=0"):
        repetition("a b", 0)


def test_a_long_text_takes_linear_time() -> None:
    start = time.perf_counter()
    repetition("word and other words. " * 20_000, 4)
    # About 0.3 s; comparing sentences pairwise would take minutes.
    assert time.perf_counter() - start < 10
