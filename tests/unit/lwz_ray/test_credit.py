"""Credit by hand: penalties in the reward, REINFORCE++'s tokens, GAE, whitening, and what the metrics say of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwz_ray.config import Config
from lwz_ray.credit import Credit, assign_credit, credit_metrics
from lwz_ray.records import Completion, FinishReason, Group, ParsedText, Prompt, Sample, TokenFacts, VersionSpan
from lwz_ray.steering import teaches_nothing
from tests.loop_parts import make_config

PROMPT = Prompt("p", "Write.", "en", None, 0)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Return a function from changes of the algorithm to a config: rewards length and format, at most 8 tokens."""

    def build(critic: dict[str, Any] | None = None, **changes: Any) -> Config:
        return make_config(tmp_path, algorithm=changes, critic=critic or {})

    return build


def sample(index: int, num_tokens: int, length: float, finish_reason: FinishReason = "stop") -> Sample:
    """Return a sample of prompt [7, 8] with these rewards: format is 1."""
    ids = np.arange(1, num_tokens + 1, dtype=np.int32)
    completion = Completion("x", ids, np.zeros(num_tokens, np.float32), finish_reason, (VersionSpan(0, num_tokens, 0),))
    rewards: dict[str, Any] = {"length": length, "format": 1.0}
    parsed = ParsedText(None, "x", True, 1.0)
    return Sample(0, index, PROMPT, np.array([7, 8], dtype=np.int32), completion, parsed, 1, rewards)


def group(*samples: Sample) -> Group:
    return Group(0, PROMPT, samples)


def facts(kl: list[float], values: list[float] | None = None) -> TokenFacts:
    """Return facts whose k1 estimate, old - ref, is `kl`; both columns begin with the two prompt tokens."""
    pad = [0.0, 0.0]
    old = np.array([*pad, *(-1.0 for _ in kl)], np.float32)
    ref = np.array([*pad, *(-1.0 - x for x in kl)], np.float32)
    return TokenFacts(old, ref, None if values is None else np.array([*pad, *values], np.float32))


def numbers(credits: list[list[Credit]], name: str = "advantages") -> list[list[float]]:
    return [getattr(c, name).tolist() for row in credits for c in row]


def assert_close(found: list[list[float]], expected: list[list[float]]) -> None:
    assert [len(x) for x in found] == [len(x) for x in expected]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=1e-6)


TWO = group(sample(0, 2, 1.0), sample(1, 1, 0.0))
KL_FACTS = [[facts([0.5, 0.25]), facts([0.0])]]


def test_one_number_a_sample_is_spread_over_its_tokens(config: Any) -> None:
    assert_close(numbers(assign_credit([TWO], None, config(advantage="centred"))), [[0.5, 0.5], [-0.5]])
    # The paper's: length is normalised to 1 and -1, format has no spread; their mean.
    assert_close(numbers(assign_credit([TWO], None, config())), [[0.5, 0.5], [-0.5]])


def test_the_summed_kl_is_taken_from_the_summed_reward(config: Any) -> None:
    penalised = config(advantage="centred", kl_coefficient=0.4, kl_in="reward", kl_estimator="k1")
    # 2 - 0.4 * 0.75 = 1.7 and 1, around 1.35.
    assert_close(numbers(assign_credit([TWO], KL_FACTS, penalised)), [[0.35, 0.35], [-0.35]])
    assert credit_metrics([TWO], KL_FACTS, penalised) == pytest.approx({"rewards/kl": -0.15})
    in_loss = config(advantage="centred", kl_coefficient=0.4, kl_in="loss", kl_estimator="k1")
    assert_close(numbers(assign_credit([TWO], KL_FACTS, in_loss)), [[0.5, 0.5], [-0.5]])
    assert credit_metrics([TWO], KL_FACTS, in_loss) == {}


@pytest.mark.parametrize(("estimator", "kl"), [("k1", 0.5), ("k2", 0.125), ("k3", np.exp(-0.5) - 0.5)])
def test_the_estimator_is_that_of_the_loss(config: Any, estimator: str, kl: float) -> None:
    penalised = config(advantage="centred", kl_coefficient=1.0, kl_in="reward", kl_estimator=estimator)
    found = credit_metrics([group(sample(0, 1, 1.0))], [[facts([0.5])]], penalised)
    assert found == pytest.approx({"rewards/kl": -kl}, abs=1e-6)


def test_samples_near_the_token_limit_lose_reward(config: Any) -> None:
    long = group(sample(0, 8, 0.0), sample(1, 6, 0.0), sample(2, 4, 0.0))
    wanted = config(advantage="centred", overlong_buffer_tokens=4, overlong_penalty=2.0)
    # Penalties 1, 1/2 and 0, times 2, around their mean.
    assert_close(numbers(assign_credit([long], None, wanted)), [[-1.0] * 8, [0.0] * 6, [1.0] * 4])
    assert credit_metrics([long], None, wanted) == {"rewards/overlong": -0.5}
    assert teaches_nothing(long, config(advantage="centred"))
    assert not teaches_nothing(long, wanted)


def test_reinforce_pp_takes_the_kl_that_is_still_to_come_and_whitens_tokens(config: Any) -> None:
    wanted = config(advantage="batch_whitened", kl_coefficient=1.0, kl_in="reward", kl_estimator="k1")
    # Before whitening 2 - 0.75, 2 - 0.25 and 1: mean 4/3, deviations -1/12, 5/12, -1/3, std sqrt(7/72).
    std = np.sqrt(7 / 72)
    expected = [[-1 / 12 / std, 5 / 12 / std], [-1 / 3 / std]]
    assert_close(numbers(assign_credit([TWO], KL_FACTS, wanted)), expected)
    # Without KL each token of a sample has the sample's: 2, 2, 1 around 5/3 with std sqrt(2) / 3.
    plain = numbers(assign_credit([TWO], None, config(advantage="batch_whitened")))
    assert_close(plain, [[0.5**0.5] * 2, [-(2**0.5)]])


def test_samples_out_of_the_loss_do_not_count_in_the_whitening(config: Any) -> None:
    cut = group(sample(0, 1, 1.0), sample(1, 1, 0.0), sample(2, 8, 100.0, "length"))
    found = numbers(assign_credit([cut], None, config(advantage="batch_whitened", truncated="mask")))
    assert_close(found, [[1.0], [-1.0], [0.0] * 8])
    counted = numbers(assign_credit([cut], None, config(advantage="batch_whitened", truncated="train")))
    assert counted[0][0] < 0


GAE_FACTS = [[facts([0.2, 0.1], [0.5, 0.25]), facts([0.0], [0.5])]]


@pytest.mark.parametrize(
    ("changes", "advantages", "returns"),
    [
        # lambda 1: the return is what comes, 2 and 1; the advantage is what the value did not foresee.
        ({"gae_lambda": 1.0}, [[1.5, 1.75], [0.5]], [[2.0, 2.0], [1.0]]),
        # KL at each token, the reward at the last: -0.2, 1.9.
        (
            {"gae_lambda": 1.0, "kl_coefficient": 1.0, "kl_in": "reward", "kl_estimator": "k1"},
            [[1.2, 1.65], [0.5]],
            [[1.7, 1.9], [1.0]],
        ),
        # lambda 1/2: deltas -0.25 and 1.75; -0.25 + 0.5 * 1.75.
        ({"gae_lambda": 0.5}, [[0.625, 1.75], [0.5]], [[1.125, 2.0], [1.0]]),
        # gamma 1/2, lambda 1: 0.5 * 2 - 0.5 is expected of the first.
        ({"gae_gamma": 0.5, "gae_lambda": 1.0}, [[0.5, 1.75], [0.5]], [[1.0, 2.0], [1.0]]),
    ],
)
def test_ppo_gets_its_reward_at_the_last_token(
    config: Any, changes: dict[str, Any], advantages: list[list[float]], returns: list[list[float]]
) -> None:
    found = assign_credit([TWO], GAE_FACTS, config({"whiten_advantages": False}, advantage="gae", **changes))
    assert_close(numbers(found), advantages)
    assert_close(numbers(found, "returns"), returns)


def test_whitening_changes_advantages_and_no_returns(config: Any) -> None:
    found = assign_credit([TWO], GAE_FACTS, config({"whiten_advantages": True}, advantage="gae", gae_lambda=1.0))
    # 1.5, 1.75 and 0.5 around 1.25 with std sqrt((1/16 + 1/4 + 9/16) / 3).
    std = np.sqrt(0.875 / 3)
    assert_close(numbers(found), [[0.25 / std, 0.5 / std], [-0.75 / std]])
    assert_close(numbers(found, "returns"), [[2.0, 2.0], [1.0]])
    assert found[0][0].mean_advantage == pytest.approx(0.375 / std)


def test_facts_that_are_missing_are_named(config: Any) -> None:
    gae = config(advantage="gae")
    with pytest.raises(ValueError, match="need facts about every token; annotate the samples first"):
        assign_credit([TWO], None, gae)
    with pytest.raises(ValueError, match="group 0, sample 0: the learner gave no values"):
        assign_credit([TWO], KL_FACTS, gae)


def test_a_group_teaches_nothing_where_what_steers_does_not_differ(config: Any) -> None:
    # The sums 1 + 0 and 0 + 1 are equal although both rewards differ.
    one, other = sample(0, 2, 1.0), sample(1, 2, 0.0)
    one.rewards["format"] = 0.0
    crossed = group(one, other)
    assert teaches_nothing(crossed, config(advantage="normalise_sum"))
    assert teaches_nothing(crossed, config(advantage="leave_one_out"))
    assert not teaches_nothing(TWO, config(advantage="normalise_sum"))
    assert teaches_nothing(group(sample(0, 2, 0.3), sample(1, 5, 0.3)), config())
