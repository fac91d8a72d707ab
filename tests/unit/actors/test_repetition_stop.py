"""What counts as a loop, and what does not: choruses, tables, lists, poems."""

import random
from itertools import pairwise

import pytest

from actors.repetition_stop import RepetitionRule, SentenceWatch, ends_in_loop

RULE = RepetitionRule(max_pattern_tokens=64, min_repeats=4, min_looping_tokens=96, check_every_tokens=16)
PROSE = (
    "The harbour was quiet before dawn. Nets hung over the wall, still wet from the night. "
    "An old man counted crates, and his dog counted gulls. Somewhere a radio spoke of rain! "
    "Would the boats go out? Nobody had asked the captain yet, since the captain was asleep.\n"
)
CHORUS = (
    "Carry me over the water, carry me over the sea,\nCarry me home to my daughter, carry her songs to me,\n"
    "The lanterns are low in the harbour, the tide has a mind of its own,\nOh carry me over the water, carry me home."
)
VERSES = (
    "I left with the herring in April, with bread and a blade and a line,\nMy mother had salted the windows.",
    "The second year out we were fewer, the mast had a voice like a crow,\nWe traded our coats for a compass.",
    "The third year I wrote on the sailcloth the names of the streets I had known,\nThe rain took the ink.",
    "The fourth year the harbour came to me, so small I could hold it, and lit,\nMy daughter was tall at the railing.",
)


def looping_end(text: str, piece: int = 40) -> int | None:
    """Return where the watch finds a loop, the text fed in pieces."""
    watch = SentenceWatch(RULE)
    for start in range(0, len(text), piece):
        end = watch.add(text[start : start + piece])
        if end is not None:
            return end
    return None


def first_end(token_ids: list[int], rule: RepetitionRule = RULE) -> int | None:
    """Return after how many tokens the loop is seen."""
    return next((n for n in range(1, len(token_ids) + 1) if ends_in_loop(token_ids[:n], rule)), None)


@pytest.mark.parametrize(
    ("length", "first"),
    [(1, 96), (2, 96), (5, 100), (23, 184), (24, 96), (40, 160), (64, 256)],
)
def test_a_pattern_of_any_length_is_found_after_enough_repeats(length: int, first: int) -> None:
    """The smallest multiple of the length that is at least 24 tokens, four times."""
    start = [900 + i for i in range(50)]
    assert first_end(start + list(range(length)) * 200) == 50 + first


def test_longer_patterns_and_changing_ones_are_none() -> None:
    assert first_end(list(range(65)) * 20) is None
    assert first_end([t for i in range(100) for t in (1, 2, 3, 4, 1000 + i)]) is None
    rng = random.Random(1)
    assert first_end([rng.randrange(50) for _ in range(2000)]) is None


@pytest.mark.parametrize(
    ("rule", "sizes", "repeats"),
    [
        (RULE, (24, 64), 4),
        (RepetitionRule(8, 4, 96, 1), (5, 8), 20),
        (RepetitionRule(1, 2, 1, 1), (1, 1), 2),
        (RepetitionRule(64, 4, 1, 1), (1, 64), 4),
        (RepetitionRule(200, 3, 90, 1), (30, 200), 3),
    ],
)
def test_sizes_cover_what_is_asked_for(rule: RepetitionRule, sizes: tuple[int, int], repeats: int) -> None:
    assert (rule.pattern_sizes, rule.repeats) == (sizes, repeats)
    assert sizes[0] * repeats >= rule.min_looping_tokens
    for length in range(1, rule.max_pattern_tokens + 1):
        assert first_end(list(range(length)) * 100, rule) is not None, length


def test_the_same_rule_as_vllms() -> None:
    """On random texts of few tokens, which loop often."""
    utils = pytest.importorskip("vllm.v1.core.sched.utils")
    from vllm.sampling_params import RepetitionDetectionParams

    rng, seen = random.Random(7), set()
    for _ in range(3000):
        rule = RepetitionRule(rng.randint(1, 6), rng.randint(2, 4), rng.randint(1, 12), 1)
        smallest, largest = rule.pattern_sizes
        params = RepetitionDetectionParams(largest, smallest, rule.repeats)
        tokens = [rng.randrange(2) for _ in range(rng.randint(1, 40))]
        tokens += tokens[-rng.randint(1, 4) :] * rng.randint(0, 6)
        found = ends_in_loop(tokens, rule)
        seen.add(found)
        assert found == utils.check_sequence_repetition(tokens, params)
    assert seen == {True, False}


def test_a_paragraph_over_and_over_is_cut_after_its_fourth_time() -> None:
    """Six sentences of 54 words, longer than any token pattern that is looked for."""
    end = looping_end(PROSE * 10)
    assert end == 4 * len(PROSE) - 1  # the line's end belongs to what comes next


def test_the_end_does_not_depend_on_the_pieces() -> None:
    text = VERSES[0] + "\n" + "The tide is in. The tide is out again, and nobody minds!\n" * 40
    ends = {looping_end(text, piece) for piece in (1, 7, 40, 10_000)}
    assert len(ends) == 1 and None not in ends


@pytest.mark.parametrize(
    "item",
    [
        "{i}. Always remember to breathe slowly and to listen to your own heart.\n",
        "{i}) Always remember to breathe slowly and to listen to your own heart.\n",
        "Tip {i}: always remember to breathe slowly and to listen to your own heart. ",
        "{i}、永远记得慢慢呼吸，倾听自己的内心，不要忘记初衷。",
    ],
)
def test_a_list_of_one_sentence_with_changing_numbers_is_cut(item: str) -> None:
    text = "Here is what I have learned.\n" + "".join(item.format(i=i) for i in range(1, 100))
    end = looping_end(text)
    assert end is not None
    assert text[:end].count(item[-8:-2]) in range(4, 21)


def test_sentences_that_alternate_without_order_are_cut() -> None:
    three = ["I walked to the river and waited.", "Nobody came to the river that day.", "So I waited by the river."]
    text = PROSE + " ".join(random.Random(3).choice(three) for _ in range(60)) + " "
    end = looping_end(text)
    assert end is not None and end - len(PROSE) < len(text) // 2


def song() -> str:
    return "\n\n".join(part for verse in VERSES for part in (verse, CHORUS)) + "\n\n" + CHORUS + "\n\n" + CHORUS + "\n"


def multiplication_table() -> str:
    head = "| n | times two | times three |\n|---|---|---|\n"
    return head + "".join(f"| {n} | {2 * n} | {3 * n} |\n" for n in range(1, 100))


def price_table() -> str:
    return "".join(f"| Item number {n} of the long list of goods on sale | {n * 7} EUR |\n" for n in range(1, 60))


def diary() -> str:
    return "".join(f"Day {n}. Ran {n + 4} km.\nSlept {n % 3 + 6} hours.\n" for n in range(1, 80))


def litany() -> str:
    saints = ["Anna", "Brigid", "Clare", "Dominic", "Edith", "Francis", "Giles", "Hilda", "Ivo", "Joan", "Kevin"]
    return "".join(f"Saint {a} of {b}, pray for us.\n" for a, b in pairwise(saints * 4))


def villanelle() -> str:
    refrain, other = "The sea gives back whatever it has kept.", "I heard the bell, and still the village slept."
    lines = [f"A line of verse that only here occurs, number {w}." for w in ("one", "two", "three", "four", "five")]
    return "\n".join([refrain, other, *(t for line in lines for t in (line, refrain, line + " Again.", other))]) + "\n"


@pytest.mark.parametrize("text", [song, multiplication_table, price_table, diary, litany, villanelle])
def test_what_repeats_on_purpose_is_not_cut(text) -> None:
    assert looping_end(text()) is None


def test_a_long_story_is_not_cut() -> None:
    rng = random.Random(5)
    words = PROSE.replace("\n", " ").split()
    story = " ".join(" ".join(rng.sample(words, 12)).rstrip(".!?,") + "." for _ in range(1200))
    assert looping_end(story) is None
