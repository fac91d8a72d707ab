"""The format reward by literal numbers and literal completions."""

from typing import Any, Literal

import pytest

from lwz_ray.config import FormatRewardConfig
from lwz_ray.records import ParsedText
from lwz_ray.templates import parse_completion
from rewards.format import format_reward, repetition_penalty


def config(partial_credit: bool) -> FormatRewardConfig:
    values: dict[str, Any] = {
        "partial_credit": partial_credit,
        "repetition_ngram": 4,
        "repetition_free": 0.2,
        "refrain_free": 0.0,
        "semantic": "none",
        "minhash_threshold": 0.25,
        "embedding_path": None,
        "embedding_threshold": 0.85,
    }
    return FormatRewardConfig(**values)


STRICT = config(partial_credit=False)
GRADED = config(partial_credit=True)
GOOD = ParsedText("P", "A", True, 1.0)
UNCLOSED = ParsedText("P", "A", False, 0.75)


@pytest.mark.parametrize(
    ("repetition", "free", "expected"),
    [(0.0, 0.2, 0.0), (0.2, 0.2, 0.0), (0.6, 0.2, 0.5), (1.0, 0.2, 1.0), (0.3, 0.0, 0.3)],
)
def test_the_penalty_rises_from_the_free_share_to_1(repetition: float, free: float, expected: float) -> None:
    assert repetition_penalty(repetition, free) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("parsed", "repetition", "config", "expected"),
    [
        (GOOD, 0.0, STRICT, 1.0),
        (GOOD, 0.2, STRICT, 1.0),
        (GOOD, 0.6, STRICT, 0.5),
        (GOOD, 1.0, STRICT, 0.0),
        (UNCLOSED, 0.0, STRICT, 0.0),
        (GOOD, 0.6, GRADED, 0.5),
        (UNCLOSED, 0.0, GRADED, 0.75),
        (UNCLOSED, 0.6, GRADED, 0.375),
        (ParsedText(None, None, False, 0.0), 0.0, GRADED, 0.0),
    ],
)
def test_format_reward(parsed: ParsedText, repetition: float, config: FormatRewardConfig, expected: float) -> None:
    assert format_reward(parsed, repetition, config) == pytest.approx(expected)


# Of each arm, from nothing to the whole and past it: the completion, its graded and its strict reward.
THINK = [
    ("", 0.0, 0),
    ("A tale without tags.", 0.0, 0),
    ("<think>", 1 / 4, 0),
    ("<think>Plan, and then the tale.", 1 / 4, 0),
    ("<think>Plan</think>", 2 / 4, 0),
    ("<think>Plan</think><answer>Tale", 3 / 4, 0),
    ("<think>Plan</think><answer>Tale</answer>", 1.0, 1),
    ("<think>Plan</think>\n\n<answer>\nTale\n</answer>\n", 1.0, 1),
    ("<answer>Tale</answer>", 2 / 4, 0),  # the plan is missing
    ("Sure! <answer>Tale</answer>", 2 / 5, 0),
    ("<think>Plan</think>Tale", 2 / 5, 0),  # the answer stands outside
    ("<think>Plan</think><answer>Tale</answer> The end.", 4 / 5, 0),
    ("<think>P</think><think>P</think><answer>Tale</answer>", 4 / 7, 0),
    ("<think>P</think><answer>Tale</answer><answer>Tale</answer>", 4 / 7, 0),
    ("<answer>Tale</answer><think>Plan</think>", 2 / 7, 0),
]
DIRECT = [
    ("", 0.0, 0),
    ("A tale without tags.", 0.0, 0),
    ("<answer>", 1 / 2, 0),
    ("<answer>Tale", 1 / 2, 0),
    ("<answer>Tale</answer>", 1.0, 1),
    ("\n<answer>\nTale\n</answer>\n", 1.0, 1),
    ("Tale</answer>", 0.0, 0),  # what was never opened cannot be closed
    ("Sure! <answer>Tale</answer>", 2 / 3, 0),
    ("<answer>Tale</answer> The end.", 2 / 3, 0),
    ("<answer>Tale</answer><answer>Tale</answer>", 2 / 5, 0),
    ("<think>Plan</think><answer>Tale</answer>", 2 / 5, 0),  # this arm writes no plan
]


@pytest.mark.parametrize(
    ("arm", "text", "graded", "strict"),
    [("think", *row) for row in THINK] + [("direct", *row) for row in DIRECT],
)
def test_the_structure_of_both_arms(arm: Literal["think", "direct"], text: str, graded: float, strict: int) -> None:
    parsed = parse_completion(text, arm)
    assert format_reward(parsed, 0.0, GRADED) == pytest.approx(graded)
    assert format_reward(parsed, 0.0, STRICT) == strict


@pytest.mark.parametrize(
    ("arm", "pieces", "expected"),
    [
        (
            "think",
            ("<think>", "Plan", "</think>", "<answer>", "Tale", "</answer>"),
            [0.25, 0.25, 0.5, 0.75, 0.75, 1],
        ),
        ("direct", ("<answer>", "Tale", "</answer>"), [0.5, 0.5, 1]),
    ],
)
def test_every_tag_in_its_place_earns_credit(
    arm: Literal["think", "direct"], pieces: tuple[str, ...], expected: list[float]
) -> None:
    written = ["".join(pieces[:end]) for end in range(1, len(pieces) + 1)]
    assert [format_reward(parse_completion(text, arm), 0.0, GRADED) for text in written] == pytest.approx(expected)


@pytest.mark.parametrize(("repetition", "free"), [(-0.1, 0.2), (1.1, 0.2), (0.5, 1.0)])
def test_shares_outside_their_interval_are_refused(repetition: float, free: float) -> None:
    with pytest.raises(ValueError, match="repetition_penalty"):
        repetition_penalty(repetition, free)
