"""The format reward by literal numbers."""

import pytest

from launch.compose import compose
from lwz_ray.config import FormatRewardConfig
from lwz_ray.records import ParsedText
from rewards.format import format_reward, repetition_penalty

STRICT = compose([]).rewards.format.model_copy(update={"partial_credit": False, "repetition_free": 0.2})
GRADED = STRICT.model_copy(update={"partial_credit": True})
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


@pytest.mark.parametrize(("repetition", "free"), [(-0.1, 0.2), (1.1, 0.2), (0.5, 1.0)])
def test_shares_outside_their_interval_are_refused(repetition: float, free: float) -> None:
    with pytest.raises(ValueError, match="repetition_penalty"):
        repetition_penalty(repetition, free)
