"""One suite over every scorer of answers: the judge in each mode and a user's function."""

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from lwz_ray.config import FunctionRewardConfig
from lwz_ray.errors import RewardFailure
from lwz_ray.records import Prompt
from rewards.components import AnswerScorer
from rewards.function import FunctionScorer
from rewards.judge import Judge
from tests.unit.rewards.judge_server import JudgeServer, by_good_words, serve
from tests.unit.rewards.test_judge import judge_config

PROMPT = Prompt("p1", "Write about tea.", "en", None, 0, reference="good")
KINDS = ("pointwise", "pairwise_reference", "pairwise_group", "function")
UNSCORABLE = "unscorable"


def no_verdict_on_the_unscorable(texts: dict[str, str]) -> dict[str, object]:
    """Judge by the number of "good"; say nothing of use where a text is the unscorable one."""
    return {} if UNSCORABLE in texts.values() else by_good_words(texts)


def share_of_good(prompt: str, answer: str) -> float:
    """Return the share of "good" among the words; a text without words has none."""
    if answer == UNSCORABLE:
        raise ValueError("no score for this")
    return answer.split().count("good") / max(1, len(answer.split()))


@pytest_asyncio.fixture(params=KINDS)
async def scorer(request: pytest.FixtureRequest) -> AsyncIterator[Judge | FunctionScorer]:
    """Make each scorer in turn."""
    if request.param == "function":
        yield FunctionScorer(FunctionRewardConfig(path=f"{__name__}:share_of_good", concurrency=4))
        return
    async with serve(JudgeServer(judging=no_verdict_on_the_unscorable)) as server:
        yield (judge := Judge(judge_config(server.base_url, mode=request.param), seed=1, deadline_s=60))
        await judge.close()


async def test_better_answers_never_score_less(scorer: AnswerScorer) -> None:
    found = await scorer.score(PROMPT, ["bad", "so good", "good good"])
    values = [value for value in found if isinstance(value, float)]
    assert len(values) == 3
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in values)
    assert values == sorted(values)
    assert values[0] < values[2]


async def test_the_same_answers_score_the_same(scorer: AnswerScorer) -> None:
    answers = ["good", "", "写得好 good", "bad"]
    assert await scorer.score(PROMPT, answers) == await scorer.score(PROMPT, answers)


async def test_a_failure_stands_in_its_own_place(scorer: AnswerScorer) -> None:
    # The group's reference for this prompt is the first answer.
    prompt = Prompt("b", PROMPT.text, "en", None, 0, reference="good")
    found = await scorer.score(prompt, ["good", "bad", UNSCORABLE])
    assert [isinstance(value, RewardFailure) for value in found] == [False, False, True]


async def test_a_sample_is_scored_alone_where_the_scope_says_so(scorer: AnswerScorer) -> None:
    assert scorer.scope in ("sample", "group")
    if scorer.scope == "sample":
        together = await scorer.score(PROMPT, ["good", "bad"])
        assert [(await scorer.score(PROMPT, [answer]))[0] for answer in ("good", "bad")] == together


async def test_a_score_that_nobody_waits_for_can_be_cancelled(scorer: AnswerScorer) -> None:
    task = asyncio.create_task(scorer.score(PROMPT, ["good", "bad"]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert len(await scorer.score(PROMPT, ["good", "bad"])) == 2


async def test_closing_twice_is_fine(scorer: Judge | FunctionScorer) -> None:
    await scorer.score(PROMPT, ["good", "bad"])
    await scorer.close()
    await scorer.close()
