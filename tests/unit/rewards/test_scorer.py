"""RewardSet: rewards and measures, streaming of samples, comparison of groups, abstention, and failures as values."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from launch.compose import compose
from lwz_ray.config import RewardsConfig
from lwz_ray.errors import InfrastructureError, RewardFailure
from lwz_ray.records import Completion, FinishReason, Prompt, Sample, VersionSpan
from lwz_ray.templates import parse_completion
from rewards.components import Scope
from rewards.pairs import ClassifierScores
from rewards.pool import RewardPool
from rewards.scorer import RewardSet


def rewards_config(**changes: Any) -> RewardsConfig:
    tree = compose([]).rewards.model_dump()
    tree["format"] |= {"repetition_ngram": 3, "repetition_free": 0.0, "semantic": "none"}
    tree["length"] |= {"l_max_factor": 2.0, "on_missing_range": "error"}
    tree |= {"retry_wait_s": 0.001}
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return RewardsConfig.model_validate(tree)


def prompt(length_range: tuple[int, int] | None = (4, 6)) -> Prompt:
    return Prompt("p7", "Write about tea.", "en", length_range, 7)


def sample(text: str, index: int = 0, finish: FinishReason = "stop") -> Sample:
    tokens = Completion(text, np.zeros(1, np.int32), np.zeros(1, np.float32), finish, (VersionSpan(0, 1, 0),))
    return Sample(3, index, prompt(), np.zeros(2, np.int32), tokens, parse_completion(text, "direct"), 0)


async def score(rewards: RewardSet, prompt: Prompt, samples: Sequence[Sample]) -> list[Sample]:
    scoring = rewards.open(prompt, len(samples))
    for s in samples:
        scoring.add(s)
    return await asyncio.wait_for(scoring.finish(), 20)


def pool(*values: float | Exception) -> RewardPool:
    """Return a pool of one replica that likes characters, or answers with what is given, again and again."""

    async def replica(prompts: Sequence[str], texts: Sequence[str]) -> ClassifierScores:
        given = values[0] if values else None
        if isinstance(given, Exception):
            raise given
        found = [len(t) / 10 - len(p) if given is None else given for p, t in zip(prompts, texts, strict=True)]
        return ClassifierScores(tuple(found), (1.0,) * len(texts), 0)

    return RewardPool([replica], 4, 5.0)


class Ranking:
    """A scorer of whole groups: the rank of each answer by its number of characters."""

    scope: Scope = "group"

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    async def score(self, prompt: Prompt, answers: Sequence[str]) -> list[float | RewardFailure]:
        self.seen.append(list(answers))
        return [float(sorted(map(len, answers)).index(len(a))) for a in answers]


class Echo:
    """A scorer of single answers that notes when it was asked."""

    scope: Scope = "sample"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def score(self, prompt: Prompt, answers: Sequence[str]) -> list[float | RewardFailure]:
        self.asked += answers
        return [float(len(a)) for a in answers]


async def test_rewards_and_measures_of_each_sample() -> None:
    texts = ["<answer>Tea is a leaf.</answer>", "<answer>go go go go go go go go</answer>", "<answer>Tea", "no tags"]
    samples = [sample(t, i) for i, t in enumerate(texts)]
    scored = await score(RewardSet(rewards_config()), prompt(), samples)
    assert [s.sample_index for s in scored] == [0, 1, 2, 3]
    # 8 of 4 to 6 words with L_max 12: (12 - 8) / (12 - 6); 1 / 4; none.
    assert [s.rewards["length"] for s in scored] == pytest.approx([1.0, 4 / 6, 1 / 4, 0.0])
    # "go" 8 times holds six 3-grams, one of them new: penalty 5/6.
    assert [s.rewards["format"] for s in scored] == pytest.approx([1.0, 1 / 6, 0.0, 0.0])
    assert scored[1].measures["repetition"] == pytest.approx(5 / 6)
    assert scored[1].measures["distinct_2"] == pytest.approx(1 / 7)
    assert (scored[1].measures["num_words"], scored[2].measures["segments_found"]) == (8.0, 0.5)
    assert all("writing" not in s.rewards for s in scored)
    assert samples[0].rewards == {}


async def test_chinese_answers_count_characters() -> None:
    scored = await score(RewardSet(rewards_config()), prompt(), [sample("<answer>茶是叶子。</answer>")])
    assert (scored[0].measures["num_words"], scored[0].rewards["length"]) == (4.0, 1.0)


async def test_a_sample_that_looped_is_degenerate() -> None:
    scored = await score(
        RewardSet(rewards_config()), prompt(), [sample("<answer>Tea is a leaf.</answer>", 0, "repetition")]
    )
    assert scored[0].rewards == {"length": 0.0, "format": 0.0}
    free = rewards_config(length={"on_missing_range": "abstain"})
    scored = await score(RewardSet(free), prompt(None), [sample("<answer>Tea.</answer>", 0, "repetition")])
    assert scored[0].rewards == {"format": 0.0}  # no range: length has nothing to say of it either


async def test_the_writing_model_sees_the_request_and_the_answer_alone_empty_where_there_is_none() -> None:
    texts = ["<answer>0123456789</answer>", "0123456789"]
    scored = await score(RewardSet(rewards_config(), pool()), prompt(), [sample(t, i) for i, t in enumerate(texts)])
    assert [s.rewards["writing"] for s in scored] == pytest.approx([1.0 - 16, 0.0 - 16])
    assert [s.measures["writing_coverage"] for s in scored] == [1.0, 1.0]


async def test_scoring_starts_with_each_sample_and_comparing_with_the_last() -> None:
    echo, ranking = Echo(), Ranking()
    scoring = RewardSet(rewards_config(), judge=ranking, function=echo).open(prompt(), 2)
    scoring.add(sample("<answer>longer</answer>", 1))
    for _ in range(20):
        await asyncio.sleep(0)
    assert echo.asked == ["longer"] and ranking.seen == []
    scoring.add(sample("<answer>tea</answer>", 0))
    scored = await scoring.finish()
    assert ranking.seen == [["tea", "longer"]]  # by sample index, however they came in
    assert [s.rewards["judge"] for s in scored] == [0.0, 1.0]
    assert [s.rewards["function"] for s in scored] == [3.0, 6.0]


async def test_without_a_range_length_abstains() -> None:
    config = rewards_config(length={"on_missing_range": "abstain"})
    scored = await score(RewardSet(config), prompt(None), [sample("<answer>Tea.</answer>")])
    assert scored[0].rewards == {"format": 1.0}


async def test_without_a_range_that_had_to_be_there_length_fails() -> None:
    scored = await score(RewardSet(rewards_config()), prompt(None), [sample("<answer>Tea.</answer>")])
    failure = RewardFailure("length", "prompt p7 has no length range", "data", "drop_group")
    assert scored[0].rewards["length"] == failure


async def test_a_failed_reward_model_leaves_the_other_rewards() -> None:
    config = rewards_config(on_failure={"writing": "abstain"})
    scored = await score(
        RewardSet(config, pool(InfrastructureError("the engine died"))), prompt(), [sample("<answer>Tea.</answer>")]
    )
    failure = scored[0].rewards["writing"]
    assert isinstance(failure, RewardFailure) and failure.action == "abstain" and "the engine died" in failure.reason
    assert scored[0].rewards["format"] == 1.0


async def test_a_score_that_is_no_number_is_a_failure() -> None:
    scored = await score(RewardSet(rewards_config(), pool(float("nan"))), prompt(), [sample("<answer>Tea.</answer>")])
    failure = scored[0].rewards["writing"]
    assert isinstance(failure, RewardFailure) and failure.reason == "the reward model's score is nan"


async def test_a_group_must_be_whole() -> None:
    scoring = RewardSet(rewards_config()).open(prompt(), 2)
    scoring.add(sample("x"))
    with pytest.raises(ValueError, match="1 of 2 samples were added"):
        await scoring.finish()
    scoring.add(sample("y", 1))
    with pytest.raises(ValueError, match="more than 2 samples"):
        scoring.add(sample("z", 2))
    scoring.cancel()


def test_a_weight_without_a_scorer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards\.weights\.writing is above 0, but nothing was given"):
        RewardSet(rewards_config(weights={"writing": 1.0}, writing={"path": "somewhere"}))
