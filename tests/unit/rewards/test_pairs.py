"""Pairs scored in windows: the hand-computed aggregate, and the coverage."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from lwz_ray.config import WritingRewardConfig
from lwz_ray.errors import UserError
from lwz_ray.pair_encoding import PairEncoder
from rewards.classifier import length_batches
from rewards.pairs import ClassifierScores, score_pairs


class Letters:
    """A tokenizer without a chat template: one token a character."""

    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(c) for c in text])


def writing(max_windows: int = 9, how: str = "mean") -> WritingRewardConfig:
    return WritingRewardConfig(
        path="model",
        engine="transformers",
        max_length_tokens=8,
        batch_size=2,
        dtype="float32",
        kv_cache_mib=64,
        memory_utilization=0.1,
        window_overlap_tokens=1,
        max_windows=max_windows,
        aggregation=how,  # type: ignore[arg-type]
    )


def last_letter(rows: Sequence[list[int]]) -> list[float]:
    """Score a row by its last letter: a is 1."""
    return [float(row[-1] - ord("a") + 1) for row in rows]


def score(config: WritingRewardConfig, prompts: list[str], texts: list[str]) -> ClassifierScores:
    return score_pairs(PairEncoder(Letters()), config, prompts, texts, last_letter)


def test_a_text_over_the_context_gets_the_mean_of_its_windows() -> None:
    # 8 tokens minus "p", two line ends: room for 5. "abcdefghi": windows abcde and efghi, which end in 5 and 9.
    assert score(writing(), ["p"], ["abcdefghi"]) == ClassifierScores((7.0,), (1.0,), 1)
    assert score(writing(how="min"), ["p"], ["abcdefghi"]) == ClassifierScores((5.0,), (1.0,), 1)


def test_short_texts_and_long_ones_keep_their_order() -> None:
    got = score(writing(), ["p", "p", "p", "pp"], ["ab", "abcdefghi", "abcde", ""])
    # The empty answer's row ends in a line end, 97 - 10 = 87 below a.
    assert got == ClassifierScores((2.0, 7.0, 5.0, -86.0), (1.0, 1.0, 1.0, 1.0), 1)


def test_coverage_is_below_one_only_where_max_windows_binds() -> None:
    text = "abcdefghijklm"  # 13 letters: windows of 5 with 1 shared, 3 of them: abcde, efghi, ijklm
    assert score(writing(max_windows=3), ["p"], [text]) == ClassifierScores((9.0,), (1.0,), 1)  # 5, 9, 13
    # Two windows, at both ends: abcde and ijklm, 10 of 13 letters.
    assert score(writing(max_windows=2), ["p"], [text]) == ClassifierScores((9.0,), (10 / 13,), 1)
    assert score(writing(max_windows=1), ["p"], [text]) == ClassifierScores((5.0,), (5 / 13,), 1)


def test_a_request_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="a request of 8 tokens leaves no room for an answer"):
        score(writing(), ["pppppp"], ["a"])


def test_unequal_numbers_and_lost_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="1 prompts and 2 texts"):
        score(writing(), ["p"], ["a", "b"])
    with pytest.raises(ValueError, match="0 scores for 1 rows"):
        score_pairs(PairEncoder(Letters()), writing(), ["p"], ["a"], lambda rows: [])


def test_nothing_to_score_asks_no_engine() -> None:
    assert score(writing(), [], []) == ClassifierScores((), (), 0)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([10, 1000, 990, 20], [[1, 2], [3, 0]]),  # no row of another order of length joins
        ([10, 20, 30], [[2, 1], [0]]),  # 30 tokens keep no device busy, 50 do
        ([400] * 5, [[0, 1, 2], [3, 4]]),
        ([], []),
    ],
)
def test_batches_hold_rows_of_like_length(lengths: list[int], expected: list[list[int]]) -> None:
    assert list(length_batches(lengths, batch_size=3, busy_tokens=40)) == expected
