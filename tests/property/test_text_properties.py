"""Laws of counting, parsing and the rewards that hold for any text."""

from hypothesis import given
from hypothesis import strategies as st

from lwz_ray.ranges import read_length_range
from lwz_ray.templates import parse_completion
from lwz_ray.text import count_words, distinct_n, units
from rewards.length import l_max_for, length_reward
from rewards.repetition import repetition

TEXTS = st.text(max_size=200)
CHINESE = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), max_size=50)
PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "plan", " ", "\n", "文", "text. "]), max_size=12
)


@given(TEXTS, TEXTS)
def test_words_of_separated_texts_add_up(a: str, b: str) -> None:
    assert count_words(f"{a} {b}") == count_words(a) + count_words(b)


@given(TEXTS)
def test_units_are_in_the_text_in_order_and_add_up(text: str) -> None:
    position = 0
    for unit in units(text):
        position = text.index(unit, position) + len(unit)
    assert len(units(text)) == count_words(text)


@given(CHINESE, st.sampled_from(["", " ", "，", "。\n", "——"]))
def test_each_chinese_character_counts_one_whatever_stands_between(text: str, between: str) -> None:
    assert count_words(between.join(text)) == len(text)


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyzéß", min_size=1, max_size=8), max_size=30))
def test_words_between_spaces_count_one_each(words: list[str]) -> None:
    assert count_words(" ".join(words)) == len(words)


@given(TEXTS, st.integers(1, 5))
def test_shares_are_shares(text: str, n: int) -> None:
    assert 0 < distinct_n(text, n) <= 1
    assert 0 <= repetition(text, n) < 1


@given(st.lists(st.sampled_from("ab"), min_size=4, max_size=20), st.integers(1, 4))
def test_writing_a_text_twice_repeats_half_or_more(words: list[str], n: int) -> None:
    sentence = " ".join(words)
    assert repetition(f"{sentence}. {sentence}.", n) >= 0.5


@given(st.integers(10, 20_000))
def test_a_stated_number_lies_in_its_range(n: int) -> None:
    for request in (f"about {n} words", f"at least {n} words", f"at most {n} words", f"{n}字", f"不超过{n}字"):
        low, high = read_length_range(request) or (0, 0)
        assert 0.9 * n <= low <= n <= high <= 1.1 * n


@given(TEXTS)
def test_any_text_has_a_range_or_none(text: str) -> None:
    found = read_length_range(text)
    assert found is None or 0 < found[0] <= found[1]


@given(PIECES, st.sampled_from(["think", "direct"]), st.sampled_from(["", "<think>", "<answer>"]))
def test_the_grade_is_full_exactly_where_the_text_is_well_formed(pieces: list[str], arm: str, prefill: str) -> None:
    parsed = parse_completion("".join(pieces), arm, prefill)  # type: ignore[arg-type]
    assert 0 <= parsed.segments_found <= 1
    assert parsed.well_formed == (parsed.segments_found == 1)
    if parsed.well_formed:
        assert parsed.answer


@given(st.text("ab<>/ 文", min_size=1).filter(str.strip), st.text("ab<>/ 文"))
def test_what_is_put_between_the_tags_comes_out(answer: str, plan: str) -> None:
    parsed = parse_completion(f"<think>{plan}</think><answer>{answer}</answer>", "think")
    assert (parsed.think, parsed.answer, parsed.well_formed) == (plan.strip(), answer.strip(), True)


@given(st.integers(0, 5000), st.integers(1, 2000), st.integers(0, 500), st.floats(1, 4))
def test_the_length_reward_is_a_plateau_with_two_slopes(n: int, low: int, width: int, factor: float) -> None:
    high = low + width
    l_max = l_max_for(high, factor)
    reward, more = length_reward(n, low, high, l_max), length_reward(n + 1, low, high, l_max)
    assert 0 <= reward <= 1
    assert (reward == 1) == (low <= n <= high)
    assert more >= reward if n < high else more <= reward
