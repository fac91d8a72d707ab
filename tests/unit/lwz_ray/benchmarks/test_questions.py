"""What a judge is asked about a benchmark's texts, and which replies are verdicts."""

import json
import re

import pytest

from lwz_ray.benchmarks.longbench_write import DIMENSIONS
from lwz_ray.benchmarks.questions import CriterionQuestion, MatchQuestion, QualityQuestion, Question
from lwz_ray.benchmarks.records import BANDS, Criterion
from lwz_ray.verdicts import MalformedVerdictError

SIX = {
    "relevance": 5,
    "accuracy": 4,
    "coherence": 3,
    "clarity": 2,
    "breadth_and_depth": 1,
    "reading_experience": 5,
}
PLOT = Criterion("Plot", "Does the story turn?", {band: f"worth {band}" for band in BANDS})
QUALITY = QualityQuestion("Write about tea.", "Tea is hot.")
CRITERION = CriterionQuestion("Write about tea.", "Tea is hot.", PLOT)
MATCH = MatchQuestion("Write about tea.", "Tea is hot.", "Tea is cold.")


def read(question: Question, reply: object) -> object:
    """Return the verdict, or why there is none."""
    try:
        return question.read(reply if isinstance(reply, str) else json.dumps(reply))
    except MalformedVerdictError as error:
        return str(error)


def test_verdicts_are_read() -> None:
    assert read(QUALITY, {"reason": "r", **SIX}) == SIX
    assert list(SIX) == list(DIMENSIONS)
    assert read(CRITERION, {"reason": "r", "score": 10}) == 10
    assert [read(MATCH, {"reason": "r", "winner": w}) for w in ("first", "tie", "second")] == [1.0, 0.5, 0.0]
    fenced = "```json\n" + json.dumps({"reason": "r", "score": 7}) + "\n```"
    assert read(CRITERION, f"<think>perhaps 3</think>\n{fenced}") == 7


@pytest.mark.parametrize(
    ("question", "reply", "why"),
    [
        (QUALITY, {"reason": "r", **SIX, "clarity": 6}, "clarity: Input should be less than or equal to 5"),
        (QUALITY, {"reason": "r", **SIX, "clarity": 0}, "clarity: Input should be greater than or equal to 1"),
        (QUALITY, {"reason": "r", **{k: v for k, v in SIX.items() if k != "clarity"}}, "clarity: Field required"),
        (QUALITY, SIX, "reason: Field required"),
        (CRITERION, {"reason": "r", "score": 11}, "score: Input should be less than or equal to 10"),
        (CRITERION, {"reason": "r", "score": 0}, "score: Input should be greater than or equal to 1"),
        (CRITERION, {"reason": "r", "score": 7.5}, "score: Input should be a valid integer"),
        (CRITERION, {"reason": "r", "score": "7"}, "score: Input should be a valid integer"),
        (CRITERION, 'The text says {"reason": "r", "score": 10}', "Invalid JSON"),
        (CRITERION, '{"reason": "r", "score": 10} and {"reason": "r", "score": 1}', "Invalid JSON: trailing"),
        (CRITERION, "", "Invalid JSON: EOF"),
        (MATCH, {"reason": "r", "winner": "A"}, "winner: Input should be 'first', 'second' or 'tie'"),
        (MATCH, {"reason": "r", "winner": "first or tie"}, "winner: Input should be"),
    ],
)
def test_anything_else_is_none(question: Question, reply: object, why: str) -> None:
    assert str(read(question, reply)).startswith(why)


def test_a_criterion_is_asked_with_its_bands_and_quality_without_length() -> None:
    system = CRITERION.messages()[0]["content"]
    assert "Plot\nDoes the story turn?\n\nWhat scores mean:\n1-2: worth 1-2\n3-4: worth 3-4\n" in system
    assert "9-10: worth 9-10" in system
    assert "integer from 1 (worst) to 10 (best)" in system
    system = QUALITY.messages()[0]["content"]
    assert [f"- {name}: " in system for name in DIMENSIONS] == [True] * 6
    assert "Leave it out of every score" in system
    assert "from 1 (very poor) to 5 (excellent)" in system
    assert list(QUALITY.schema()["required"]) == ["reason", *DIMENSIONS]
    assert QUALITY.schema()["properties"]["clarity"]["maximum"] == 5


@pytest.mark.parametrize(
    ("question", "names"),
    [
        (QUALITY, ["REQUEST", "ANSWER"]),
        (CRITERION, ["REQUEST", "ANSWER"]),
        (MATCH, ["REQUEST", "FIRST ANSWER", "SECOND ANSWER"]),
    ],
)
def test_texts_stand_between_lines_that_no_text_can_write(question: Question, names: list[str]) -> None:
    system, user = (message["content"] for message in question.messages())
    (nonce,) = re.findall(r"with the id ([0-9a-f]{16})\.", system)
    assert re.findall(rf"^\[BEGIN ([A-Z ]+) {nonce}\]$", user, re.MULTILINE) == names
    assert re.findall(rf"^\[END ([A-Z ]+) {nonce}\]$", user, re.MULTILINE) == names
    assert nonce not in question.messages()[0]["content"]
    assert "Tea is hot." not in system


def test_the_key_is_of_what_is_asked_and_not_of_the_random_id() -> None:
    assert QUALITY.key == QualityQuestion("Write about tea.", "Tea is hot.").key
    assert QUALITY.key.startswith("quality/")
    bands = {**PLOT.bands, "9-10": "perfect"}
    others: list[Question] = [
        QUALITY,
        CRITERION,
        MATCH,
        QualityQuestion("Write about tea.", "Tea is hot!"),
        QualityQuestion("Write about teas.", "Tea is hot."),
        CriterionQuestion("Write about tea.", "Tea is hot.", Criterion("Plot", "Does the story turn?", bands)),
        CriterionQuestion("Write about tea.", "Tea is hot.", Criterion("Plots", "Does the story turn?", PLOT.bands)),
        MatchQuestion("Write about tea.", "Tea is cold.", "Tea is hot."),
    ]
    assert len({question.key for question in others}) == 8
