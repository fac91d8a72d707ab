"""Near-duplicates: similarity by hand, thresholds, order, and every pair found that exact comparison finds."""

import random

import pytest

from lwz_ray.dedup import NearDuplicates, folded, jaccard, num_bands, word_shingles

TALE = "Write a story about a tram conductor who keeps a diary of the things that people leave behind"


def similarity(a: str, b: str) -> float:
    return jaccard(word_shingles(folded(a)), word_shingles(folded(b)))


def test_case_and_punctuation_are_no_difference():
    assert folded("Write, a POEM!") == folded("write a poem") == ("write", "a", "poem")


def test_a_word_stands_in_three_ngrams_also_at_the_edges():
    assert word_shingles(("tea",)) == {"\0\0tea", "\0tea\0", "tea\0\0"}
    assert len(word_shingles(("a", "b", "c", "d"))) == 6


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("one two three four five", "one two three four five", 1.0),
        ("one two three four five", "one two three four six", 4 / 10),  # the last word: 3 of 7 n-grams each
        ("one two three four five", "one two seven four five", 4 / 10),  # a word in the middle: the same
        ("one two three", "four five six", 0.0),
        ("春眠不觉晓", "春眠不觉早", 4 / 10),
    ],
)
def test_similarity_by_hand(a: str, b: str, expected: float):
    assert similarity(a, b) == pytest.approx(expected)


def test_nothing_resembles_nothing():
    assert jaccard(set(), set()) == 0.0


@pytest.mark.parametrize(("threshold", "expected"), [(1.0, 1), (0.9, 16), (0.7, 32), (0.5, 64), (0.2, 128)])
def test_bands_for_a_threshold(threshold: float, expected: int):
    # 0.7: 1 - (1 - 0.7^4)^32 = 0.99985, while 16 bands of 8 give 0.61.
    assert num_bands(threshold) == expected


def test_the_first_that_it_repeats_is_told_and_it_is_not_remembered():
    seen = NearDuplicates(0.7)
    assert seen.take(folded(TALE)) is None
    assert seen.take(folded("Explain how to plant a hedge of hornbeam in heavy soil")) is None
    assert seen.take(folded(TALE.replace("tram", "bus"))) == 0
    assert seen.take(folded("Explain how to plant a hedge of hornbeam in heavy soil!")) == 1
    assert len(seen) == 2


def test_short_requests_on_other_subjects_are_not_the_same():
    seen = NearDuplicates(0.7)
    subjects = ("cats", "dogs", "the sea", "my mother", "winter")
    assert [seen.take(folded(f"Write an essay about {s}")) for s in subjects] == [None] * 5


def test_the_threshold_itself_counts():
    a, b = "one two three four five", "one two three four six"
    at, above = NearDuplicates(0.4), NearDuplicates(0.41)
    assert (at.take(folded(a)), at.take(folded(b))) == (None, 0)
    assert (above.take(folded(a)), above.take(folded(b))) == (None, None)


def test_finds_what_comparing_all_pairs_finds():
    drawn = random.Random(5)
    words = [f"w{i}" for i in range(400)]
    requests = [[drawn.choice(words) for _ in range(30)] for _ in range(40)]
    for _ in range(160):
        changed = list(drawn.choice(requests))
        for _ in range(drawn.randrange(1, 5)):
            changed[drawn.randrange(30)] = drawn.choice(words)
        requests.append(changed)
    seen, kept, expected = NearDuplicates(0.7), [], []
    for request in requests:
        shingles = word_shingles(request)
        first = next((i for i, other in enumerate(kept) if jaccard(other, shingles) >= 0.7), None)
        expected.append(first)
        if first is None:
            kept.append(shingles)
    assert [seen.take(request) for request in requests] == expected
    assert sum(e is not None for e in expected) == 44
