"""RewardSet over a real, small reward model: rewards, abstention, and failures as values."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lwz_ray.config import RewardsConfig
from lwz_ray.errors import InfrastructureError, RewardFailure
from lwz_ray.records import Completion, Prompt, Sample, VersionSpan
from lwz_ray.templates import parse_completion
from rewards.scorer import RewardSet


def rewards_config(**changes: Any) -> RewardsConfig:
    plain: dict[str, Any] = {
        "replicas": 1,
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "threads": 1,
        "weights": {"length": 1.0, "writing": 0.0, "format": 1.0},
        "length": {"l_max_factor": 2.0, "on_missing_range": "error"},
        "format": {"partial_credit": False, "repetition_ngram": 3, "repetition_free": 0.0},
        "writing": {
            "path": "reward-model",
            "engine": "transformers",
            "max_length_tokens": 64,
            "batch_size": 4,
            "dtype": "float32",
            "kv_cache_mib": 64,
            "memory_utilization": 0.1,
        },
        "start_timeout_s": 60.0,
        "request_timeout_s": 5.0,
    }
    return RewardsConfig(**plain | changes)


def prompt(length_range: tuple[int, int] | None = (4, 6)) -> Prompt:
    return Prompt("p7", "Write about tea.", "en", length_range, 7)


def sample(text: str, index: int = 0) -> Sample:
    tokens = Completion(text, np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", (VersionSpan(0, 1, 0),))
    return Sample(3, index, prompt(), np.zeros(2, np.int32), tokens, parse_completion(text, "direct"), 0)


class LengthLover:
    """A reward model that likes characters and reads the request."""

    async def score_texts(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [len(t) / 10 - len(p) for p, t in zip(prompts, texts, strict=True)]


class Answering:
    """A reward model that gives one fixed answer, or raises it."""

    def __init__(self, answer: list[float] | Exception) -> None:
        self.answer = answer

    async def score_texts(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Asleep:
    async def score_texts(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        await asyncio.sleep(60)
        return [0.0] * len(texts)


async def test_rewards_and_measures_of_each_sample() -> None:
    texts = ["<answer>Tea is a leaf.</answer>", "<answer>go go go go go go go go</answer>", "<answer>Tea", "no tags"]
    samples = [sample(t, i) for i, t in enumerate(texts)]
    scored = await RewardSet(rewards_config()).score(prompt(), samples)
    assert [s.sample_index for s in scored] == [0, 1, 2, 3]
    assert [s.num_words for s in scored] == [4, 8, 1, 0]
    # 8 of 4 to 6 words with L_max 12: (12 - 8) / (12 - 6); 1 / 4; none.
    assert [s.rewards["length"] for s in scored] == pytest.approx([1.0, 4 / 6, 1 / 4, 0.0])
    # "go" 8 times holds six 3-grams, one of them new: penalty 5/6.
    assert [s.rewards["format"] for s in scored] == pytest.approx([1.0, 1 / 6, 0.0, 0.0])
    assert scored[1].measures == pytest.approx(
        {"repetition": 5 / 6, "distinct_2": 1 / 7, "num_words": 8.0, "well_formed": 1.0, "segments_found": 1.0}
    )
    assert scored[2].measures["segments_found"] == 0.5
    assert all("writing" not in s.rewards for s in scored)
    assert samples[0].rewards == {}


async def test_chinese_answers_count_characters() -> None:
    scored = await RewardSet(rewards_config()).score(prompt(), [sample("<answer>茶是叶子。</answer>")])
    assert (scored[0].num_words, scored[0].rewards["length"]) == (4, 1.0)


async def test_the_writing_model_sees_the_request_and_the_answer_alone_empty_where_there_is_none() -> None:
    scored = await RewardSet(rewards_config(), LengthLover()).score(
        prompt(), [sample("<answer>0123456789</answer>"), sample("0123456789")]
    )
    assert [s.rewards["writing"] for s in scored] == pytest.approx([1.0 - 16, 0.0 - 16])


async def test_without_a_range_length_abstains() -> None:
    config = rewards_config(length={"l_max_factor": 2.0, "on_missing_range": "abstain"})
    scored = await RewardSet(config).score(prompt(None), [sample("<answer>Tea.</answer>")])
    assert scored[0].rewards == {"format": 1.0}


async def test_without_a_range_that_had_to_be_there_length_fails() -> None:
    scored = await RewardSet(rewards_config()).score(prompt(None), [sample("<answer>Tea.</answer>")])
    assert scored[0].rewards["length"] == RewardFailure("length", "prompt p7 has no length range", "data")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (InfrastructureError("replica 1 died"), "replica 1 died"),
        ([1.0], "the reward model gave 1 scores for 2 answers"),
    ],
)
async def test_a_failed_request_is_a_failure_of_every_sample(answer: list[float] | Exception, reason: str) -> None:
    samples = [sample("<answer>Tea.</answer>"), sample("<answer>Leaf.</answer>")]
    scored = await RewardSet(rewards_config(), Answering(answer)).score(prompt(), samples)
    assert [s.rewards["writing"] for s in scored] == [RewardFailure("writing", reason, "infrastructure")] * 2
    assert [s.rewards["format"] for s in scored] == [1.0, 1.0]


async def test_a_late_reward_model_is_a_failure_that_names_the_wait() -> None:
    config = rewards_config(request_timeout_s=0.05)
    scored = await RewardSet(config, Asleep()).score(prompt(), [sample("<answer>Tea.</answer>")])
    reason = "waited 0.05 s for the writing reward of 1 answers to prompt p7 and gave up"
    assert scored[0].rewards["writing"] == RewardFailure("writing", reason, "infrastructure")


async def test_a_score_that_is_no_number_fails_alone() -> None:
    samples = [sample("<answer>Tea.</answer>"), sample("<answer>Leaf.</answer>")]
    scored = await RewardSet(rewards_config(), Answering([2.0, float("nan")])).score(prompt(), samples)
    assert scored[0].rewards["writing"] == 2.0
    assert scored[1].rewards["writing"] == RewardFailure("writing", "the reward model's score is nan", "infrastructure")


async def test_a_programming_error_is_not_hidden() -> None:
    with pytest.raises(KeyError, match="oops"):
        await RewardSet(rewards_config(), Answering(KeyError("oops"))).score(prompt(), [sample("x")])


def test_a_weight_without_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards\.weights\.writing=1 needs a reward model"):
        RewardSet(rewards_config(weights={"writing": 1.0}))
