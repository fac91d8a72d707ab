"""The counting rule by literal examples, and what is built on its units."""

import time

import pytest

from lwz_ray.text import count_words, detect_language, distinct_n, sentences, units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        (" \n\t", 0),
        ("The quick brown fox", 4),
        ("春眠不觉晓", 5),
        ("春眠不觉晓，处处闻啼鸟。", 10),
        ("—…！？「」()#*_ 😀", 0),
        # apostrophes
        ("don't", 1),
        ("o’clock", 1),
        ("rock 'n' roll", 3),
        ("the students' books", 3),
        ("'quoted'", 1),
        # hyphens and other signs
        ("well-known", 2),
        ("long — short", 2),
        ("snake_case", 2),
        ("and/or", 2),
        ("e.g.", 2),
        ("end.Start", 2),
        # digits
        ("2024", 1),
        ("3.14", 1),
        ("2,000", 1),
        ("1,234,567.89", 1),
        ("1,2,3", 3),
        ("10:30", 2),
        ("50%", 1),
        ("3rd H2O GPT4", 3),
        ("２０２４年", 2),
        # kana, Hangul, other scripts
        ("ひらがな", 4),
        ("コーヒー", 4),
        ("が", 1),
        ("か\u3099", 1),
        ("ｶﾞ", 1),
        ("日本語を書く", 6),
        ("한국어 글쓰기", 2),
        ("Привет, мир", 2),
        ("Καλημέρα κόσμε", 2),
        ("مرحبا بالعالم", 2),
        ("déjà vu", 2),
        ("de\u0301ja\u0300 vu", 2),
        ("naïve Übermut", 2),
        # mixed
        ("GPT-4模型", 4),
        ("1.5万字", 3),
        ("用Python写代码", 5),
    ],
)
def test_count_words(text: str, expected: int) -> None:
    assert count_words(text) == expected


def test_units_are_the_counted_pieces_as_written() -> None:
    assert units("Don't use GPT-4模型, 3.14!") == ["Don't", "use", "GPT", "4", "模", "型", "3.14"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write a story", "en"),
        ("写一个故事", "zh"),
        ("Explain the word 道 in English", "zh"),
        ("Напиши рассказ", "en"),
        ("한국어", "en"),
        ("“quotes” — and 。", "en"),
        ("", "en"),
    ],
)
def test_a_chinese_character_selects_chinese(text: str, expected: str) -> None:
    assert detect_language(text) == expected


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b c d", 2, 1.0),
        ("a b a b a", 2, 0.5),  # ab ba ab ba: 2 of 4
        ("The the THE", 1, 1 / 3),
        ("好好好好", 2, 1 / 3),
        ("天天向上", 1, 0.75),
        ("one", 2, 1.0),
        ("", 1, 1.0),
    ],
)
def test_distinct_n(text: str, n: int, expected: float) -> None:
    assert distinct_n(text, n) == pytest.approx(expected)


def test_distinct_n_refuses_n_zero() -> None:
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        distinct_n("a b", 0)


def test_sentences_of_both_languages() -> None:
    text = "It is 3.14. Is it? Yes!\n\n春天来了。花开了！真好……是吗？"
    assert sentences(text) == ["It is 3.14", "Is it", "Yes", "春天来了", "花开了", "真好", "是吗"]


@pytest.mark.parametrize("text", ["春" * 400_000, "word " * 80_000, "a'" * 200_000, "1," * 200_000, "1.," * 130_000])
def test_counting_takes_linear_time(text: str) -> None:
    start = time.perf_counter()
    count_words(text)
    # About 0.1 s; a quadratic rule would take minutes on any of these.
    assert time.perf_counter() - start < 5
