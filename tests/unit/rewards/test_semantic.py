"""Passages and their comparison, by literal texts and vectors."""

import numpy as np
import pytest

from rewards import semantic
from rewards.semantic import Passages, repeats_by_cosine, repeats_by_minhash, split_passages

ORIGINAL = (
    "From the hill you can see the whole harbour. Fishing boats lie close together along the eastern quay, their nets "
    "hung out to dry between the masts. A rusty freighter has been waiting for three weeks."
)
NEAR_COPY = (
    "From this hill you can see the entire harbour. Fishing boats lie close together along the western quay, their "
    "nets hung up to dry between the masts. A rusty tanker has been waiting for three weeks."
)
OTHER = (
    "My sister teaches at the school behind the customs house. Every morning she walks past the bakery, buys two "
    "rolls, and gives one of them to the dog that sleeps under the post box at the corner."
)
ORIGINAL_ZH = "村口的老槐树有三百多年了。夏天的傍晚，老人们搬着竹椅坐到树下，摇着蒲扇讲从前的事。"
NEAR_COPY_ZH = "村口的老槐树有三百来年了。夏天的晚上，老人们搬着竹凳坐到树下，摇着蒲扇讲过去的事。"
OTHER_ZH = "修表的老周有一只眼睛是坏的，可他偏偏靠眼睛吃饭。街坊都说他把表贴在脸边听一会儿就知道毛病。"


def words(n: int, name: str = "w") -> str:
    """Return a sentence of n different words."""
    return " ".join(f"{name}{i}" for i in range(n)) + "."


def test_a_passage_begins_at_every_sentence_and_has_thirty_words() -> None:
    passages = split_passages(" ".join(words(n) for n in (10, 15, 20, 30, 5, 4)), "en")
    assert [len(s.split()) for s in passages.sentences] == [10, 15, 20, 30, 5, 4]
    # The last one goes to the end, since 5 and 4 words make none of their own.
    assert passages.spans == [(0, 3), (1, 3), (2, 4), (3, 6)]
    assert [passages.num_earlier(k) for k in range(4)] == [0, 0, 0, 2]


@pytest.mark.parametrize("text", ["", "A few words.", words(29), "……\n\n"])
def test_a_short_text_has_no_passage(text: str) -> None:
    assert split_passages(text, "en").spans == []


def test_a_sentence_without_end_is_cut() -> None:
    assert [len(s) for s in split_passages("好" * 70, "zh").sentences] == [30, 30, 10]
    assert [len(s) for s in split_passages("abcd " * 61, "en").sentences] == [180, 124]
    assert [len(s) for s in split_passages("abcd " * 60, "en").sentences] == [299]


def test_marks_are_those_of_the_sentences_in_repeated_passages() -> None:
    passages = Passages(["a", "b", "c", "d", "e"], [(0, 2), (1, 3), (2, 4), (3, 5)])
    assert passages.mark([False, True, True, False]) == [False, True, True, True, False]
    assert passages.mark([True, False, False, True]) == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("language", "original", "copy", "other"),
    [("en", ORIGINAL, NEAR_COPY, OTHER), ("zh", ORIGINAL_ZH, NEAR_COPY_ZH, OTHER_ZH)],
)
def test_a_near_copy_is_found_after_other_text_and_other_text_is_not(language, original, copy, other) -> None:
    passages = split_passages(f"{original}\n{other}\n{copy}", language)
    marked = passages.mark(repeats_by_minhash(passages, language, 0.5).repeated)
    num_copied = len(split_passages(copy, language).sentences)
    assert marked == [False] * (len(marked) - num_copied) + [True] * num_copied
    assert not any(repeats_by_minhash(split_passages(f"{original}\n{other}", language), language, 0.25).repeated)


def test_the_threshold_is_the_jaccard_similarity_of_the_shingles() -> None:
    # Two passages of 30 words of five letters, one of them exchanged.
    first = " ".join(f"aa{chr(97 + i % 26)}{chr(97 + i // 26)}x" for i in range(30))
    second = first.replace("aa" + "a" + "a" + "x", "zzzzz")
    a, b = ({t[i : i + 5] for i in range(len(t) - 4)} for t in (first, second))
    exact = len(a & b) / len(a | b)
    passages = split_passages(f"{first}\n{second}", "en")
    assert repeats_by_minhash(passages, "en", exact - 1e-9).repeated == [False, True]
    assert repeats_by_minhash(passages, "en", exact + 1e-9).repeated == [False, False]


def test_letter_case_and_punctuation_do_not_hide_a_copy() -> None:
    passages = split_passages(f"{words(40)}\n{words(40).upper().replace(' ', ', ')}", "en")
    assert repeats_by_minhash(passages, "en", 1.0).repeated == [False, True]


def test_a_loop_is_found_and_does_not_fill_the_index() -> None:
    passages = split_passages("I do not know what to say to you now. " * 300, "en")
    repeats = repeats_by_minhash(passages, "en", 0.25)
    first_later = next(k for k in range(len(passages.spans)) if passages.num_earlier(k))
    assert repeats.repeated == [k >= first_later for k in range(len(passages.spans))]
    # One passage of the loop is indexed, so that each is compared with one.
    assert repeats.num_compared == len(passages.spans) - first_later


def test_comparisons_of_a_passage_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "MAX_EARLIER", 4)
    # Twenty variants, each like every other (0.5) and none almost equal.
    text = "\n".join(f"{ORIGINAL.split('. ')[1]} {words(14, chr(97 + k) * 3)}" for k in range(20))
    repeats = repeats_by_minhash(split_passages(text, "en"), "en", 0.25)
    assert repeats.repeated == [False] + [True] * 19
    assert repeats.num_compared == 1 + 2 + 3 + 4 * 16


def unit(angle: float) -> list[float]:
    """Return a vector of length 1 at an angle in degrees."""
    return [float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle)))]


def test_cosines_compare_passages_that_do_not_overlap() -> None:
    passages = Passages(["a", "b", "c", "d"], [(0, 1), (1, 2), (2, 3), (3, 4)])
    sums = np.array([unit(0), unit(90), unit(30), unit(210)]) * np.array([[2.0], [1.0], [5.0], [3.0]])
    counts = np.array([2.0, 1.0, 5.0, 3.0])
    # c is 30 degrees from a (0.866) and 60 from b (0.5); d is opposite to c.
    assert repeats_by_cosine(passages, sums, counts, 0.86).repeated == [False, False, True, False]
    assert repeats_by_cosine(passages, sums, counts, 0.87).repeated == [False, False, False, False]
    assert repeats_by_cosine(passages, sums, counts, 0.86).num_compared == 6
    overlapping = Passages(["a", "b", "c"], [(0, 2), (1, 3)])
    assert repeats_by_cosine(overlapping, np.ones((3, 2)), np.ones(3), 0.5).repeated == [False, False]


def test_a_passage_is_the_mean_over_its_tokens() -> None:
    # (3 * [1, 0] + 1 * [0, 1]) / 4 has a cosine of 3 / sqrt(10) = 0.9487 with [1, 0].
    passages = Passages(["a", "b", "c"], [(0, 1), (1, 3)])
    sums, counts = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), np.array([1.0, 3.0, 1.0])
    assert repeats_by_cosine(passages, sums, counts, 0.948).repeated == [False, True]
    assert repeats_by_cosine(passages, sums, counts, 0.949).repeated == [False, False]


@pytest.mark.parametrize("block", [1, 3, 256])
def test_cosines_look_back_a_bounded_way(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(semantic, "MAX_EARLIER", 2)
    monkeypatch.setattr(semantic, "_BLOCK", block)
    passages = Passages(list("abcde"), [(i, i + 1) for i in range(5)])
    sums = np.array([unit(0), unit(90), unit(0), unit(180), unit(90)])
    # c repeats a, two before it; e repeats b, three before it: out of sight.
    repeats = repeats_by_cosine(passages, sums, np.ones(5), 0.99)
    assert repeats.repeated == [False, False, True, False, False]
    assert repeats.num_compared == 0 + 1 + 2 + 2 + 2


def test_without_passages_nothing_repeats() -> None:
    assert repeats_by_minhash(Passages([], []), "en", 0.5).repeated == []
    assert repeats_by_cosine(Passages([], []), np.zeros((0, 2)), np.zeros(0), 0.5).repeated == []
