"""The range that a request states, by literal requests."""

import time

import pytest

from lwz_ray.ranges import read_length_range

ENGLISH = [
    ("Write about 800 words on tea.", (720, 880)),
    ("An 800-word essay", (720, 880)),
    ("Write a 1500 word story", (1350, 1650)),
    ("~500 words", (450, 550)),
    ("It should cover 800 words", (720, 880)),
    ("between 400 and 600 words", (400, 600)),
    ("Use between 40 and 55 words.", (40, 55)),
    ("40 to 55 words", (40, 55)),
    ("40-55 words", (40, 55)),
    ("40–55 words", (40, 55)),
    ("from 600 to 400 words", (400, 600)),
    ("300 words to 400 words", (300, 400)),
    ("1,000 to 1,500 words", (1000, 1500)),
    ("no more than 2,000 words", (1800, 2000)),
    ("must not exceed 500 words", (450, 500)),
    ("doesn't exceed 300 words", (270, 300)),
    ("under 300 words", (270, 300)),
    ("up to 300 words", (270, 300)),
    ("a maximum of 300 words", (270, 300)),
    ("300 words or less", (270, 300)),
    ("300 words max", (270, 300)),
    ("at least 2000 words", (2000, 2200)),
    ("no less than 1000 words", (1000, 1100)),
    ("no fewer than 500 words", (500, 550)),
    ("more than 5000 words", (5000, 5500)),
    ("should exceed 500 words", (500, 550)),
    ("500 words or more", (500, 550)),
    ("500+ words", (500, 550)),
    ("a 300-word minimum", (300, 330)),
    ("at least 500 words and no more than 800 words", (500, 800)),
    ("at most 150 words, but no less than 120 words", (120, 150)),
    ("2k words", (1800, 2200)),
    ("2-3k words", (2000, 3000)),
    ("three thousand words", (2700, 3300)),
    ("five hundred words", (450, 550)),
    ("Word count: 800", (720, 880)),
    ("The word limit is 1500.", (1350, 1650)),
    ("The word count should be between 800 and 1000", (800, 1000)),
    ("800 Chinese characters", (720, 880)),
    ("55 words", (50, 60)),  # 49.5 and 60.5, rounded inwards
]
CHINESE = [
    ("写一篇800字的作文", (720, 880)),
    ("写一篇800字文章", (720, 880)),
    ("写作文,800字", (720, 880)),
    ("2000字左右", (1800, 2200)),
    ("约800字", (720, 880)),
    ("不少于2000字", (2000, 2200)),
    ("不得少于600字", (600, 660)),
    ("至少600字", (600, 660)),
    ("1000字以上", (1000, 1100)),
    ("不超过200字", (180, 200)),
    ("最多200字", (180, 200)),
    ("200字以内", (180, 200)),
    ("控制在800字以内", (720, 800)),
    ("不少于800字，不超过1000字", (800, 1000)),
    ("40到60字", (40, 60)),
    ("40至60字", (40, 60)),
    ("写50到70个字", (50, 70)),
    ("800～1000字", (800, 1000)),
    ("300字到400字", (300, 400)),
    ("1万字", (9000, 11000)),
    ("1.5万字", (13500, 16500)),
    ("1万5千字", (13500, 16500)),
    ("1-2万字", (10000, 20000)),
    ("八百字", (720, 880)),
    ("两千五百字", (2250, 2750)),
    ("两千五字", (2250, 2750)),
    ("一百零五字", (95, 115)),
    ("一万二千字", (10800, 13200)),
    ("三到五千字", (3000, 5000)),
    ("万字长文", (9000, 11000)),
    ("字数要求：2000左右", (1800, 2200)),
    ("讲稿字数1400左右", (1260, 1540)),
    ("字数在800-1000之间", (800, 1000)),
    ("300词的英语作文", (270, 330)),
    ("120个单词", (108, 132)),
    ("２０００字", (1800, 2200)),
    ("不少於兩千字", (2000, 2200)),
]
NOTHING = [
    "Write a long story about a lighthouse keeper.",
    "A story with 3 characters and 12 chapters set in 1984",
    "Make a password of 12 words",
    "Describe it in 3 words",
    "Give me a list of 50 words",
    "How do I read 200 words per minute?",
    "Five poems of 100 words each",
    "Each paragraph should have about 100 words.",
    "Explain these 20 words",
    "写一个发生在2024年的故事，有3个人物",
    "用三个字概括",
    "解释四字成语",
    "十字路口的故事",
    "《千字文》的历史",
    "不超过500字符",
    "写第100字的笔画",
    "每篇400字左右",
    "分两部分写，各写1000字",
    "写几百字就好",
    "大概七八百字",
    "",
]


@pytest.mark.parametrize(("request_text", "expected"), ENGLISH + CHINESE)
def test_read_length_range(request_text: str, expected: tuple[int, int]) -> None:
    assert read_length_range(request_text) == expected


@pytest.mark.parametrize("request_text", NOTHING)
def test_other_numbers_are_no_length(request_text: str) -> None:
    assert read_length_range(request_text) is None


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("Write 2000 words. Start with a 100-word scene.", (1800, 2200)),
        ("Shorten this 5000-word article to 300 words", (270, 330)),
        ("请把这篇5000字的文章缩写到300字", (270, 330)),
        ("写一篇800字的文章，每段100字", (720, 880)),
    ],
)
def test_of_several_numbers_the_whole_is_read(request_text: str, expected: tuple[int, int]) -> None:
    assert read_length_range(request_text) == expected


@pytest.mark.parametrize(
    "text", ["1" * 100_000, "一" * 100_000, "no more than " * 9_000, "1 to " * 20_000, "字数" * 50_000]
)
def test_reading_takes_linear_time(text: str) -> None:
    start = time.perf_counter()
    assert read_length_range(text) is None
    # About 0.1 s; a quadratic rule would take minutes on any of these.
    assert time.perf_counter() - start < 5
