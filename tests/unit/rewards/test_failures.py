"""What becomes of a reward that fails: each policy, its caps, and its deadline."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from launch.compose import compose
from lwz_ray.config import RewardsConfig
from lwz_ray.errors import InfrastructureError, RewardFailure, UserError
from lwz_ray.records import Completion, ParsedText, Prompt, Sample, VersionSpan
from rewards.components import Scope, Score
from rewards.failures import Guard

PROMPT = Prompt("p7", "Write.", "en", (1, 3), 0)
DOWN = InfrastructureError("replica 1 died")


def config(policy: str, **changes: Any) -> RewardsConfig:
    tree = compose([]).rewards.model_dump()
    tree["on_failure"]["judge"] = policy
    tree |= {"max_retries": 2, "retry_wait_s": 0.001, "max_failures_in_a_row": 5} | changes
    return RewardsConfig.model_validate(tree)


def sample(index: int = 0) -> Sample:
    completion = Completion("x", np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", (VersionSpan(0, 1, 0),))
    return Sample(0, index, PROMPT, np.zeros(1, np.int32), completion, ParsedText(None, "x", True, 1.0), 1)


class Scripted:
    """A component that plays a list of outcomes: a number, a failure value, an error, or a wait in seconds."""

    rewards = ("judge",)
    scope: Scope = "sample"

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0

    async def score(self, prompt: Prompt, samples: Sequence[Sample]) -> list[Score]:
        outcome = self.outcomes[min(self.calls, len(self.outcomes) - 1)]
        self.calls += 1
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, tuple):  # so many seconds late, and never asked for the rest
            await asyncio.sleep(outcome[0])
            outcome = 0.0
        return [Score({"judge": outcome}) for _ in samples]


def failure(found: list[Score]) -> RewardFailure:
    value = found[0].values["judge"]
    assert isinstance(value, RewardFailure)
    return value


async def test_retry_gets_a_score_from_the_attempt_that_succeeds() -> None:
    part = Scripted(DOWN, DOWN, 0.75)
    guard = Guard(part, config("retry"))
    assert (await guard.score(PROMPT, [sample()]))[0].values == {"judge": 0.75}
    assert part.calls == 3 and guard.num_retries == 2


async def test_retry_gives_up_after_its_cap_and_drops_the_group() -> None:
    part = Scripted(DOWN)
    value = failure(await Guard(part, config("retry")).score(PROMPT, [sample()]))
    assert part.calls == 3  # one and two more
    assert value == RewardFailure("judge", "replica 1 died", "infrastructure", "drop_group")


async def test_what_the_data_lacks_is_not_asked_again() -> None:
    part = Scripted(RewardFailure("judge", "no reference", "data"))
    assert failure(await Guard(part, config("retry")).score(PROMPT, [sample()])).action == "drop_group"
    assert part.calls == 1


@pytest.mark.parametrize(("policy", "action"), [("abstain", "abstain"), ("drop_group", "drop_group")])
async def test_abstain_and_drop_group_ask_once(policy: str, action: str) -> None:
    part = Scripted(DOWN)
    assert failure(await Guard(part, config(policy)).score(PROMPT, [sample()])).action == action
    assert part.calls == 1


async def test_fail_ends_the_run_and_says_which_key() -> None:
    with pytest.raises(InfrastructureError, match=r"rewards\.on_failure\.judge=fail\): replica 1 died"):
        await Guard(Scripted(DOWN), config("fail")).score(PROMPT, [sample()])


async def test_too_many_in_a_row_end_the_run_and_a_success_starts_the_count_anew() -> None:
    guard = Guard(Scripted(DOWN, DOWN, 0.5, DOWN, DOWN, DOWN), config("abstain", max_failures_in_a_row=3))
    for _ in range(5):
        await guard.score(PROMPT, [sample()])
    with pytest.raises(InfrastructureError, match=r"failed 3 times in a row \(rewards\.max_failures_in_a_row\)"):
        await guard.score(PROMPT, [sample()])


async def test_a_straggler_has_a_deadline_that_says_what_was_waited_for() -> None:
    short = {**compose([]).rewards.model_dump()["deadline_s"], "judge": 0.05}
    guard = Guard(Scripted((30.0,)), config("abstain", deadline_s=short))
    value = failure(await guard.score(PROMPT, [sample(3)]))
    assert value.reason == "waited 0.05 s for the judge reward of sample 3 of prompt p7 and gave up"


async def test_retries_end_with_the_deadline() -> None:
    short = {**compose([]).rewards.model_dump()["deadline_s"], "judge": 0.2}
    part = Scripted(DOWN)
    guard = Guard(part, config("retry", deadline_s=short, max_retries=1000, retry_wait_s=0.06))
    assert failure(await guard.score(PROMPT, [sample()])).reason == "replica 1 died"
    assert 2 <= part.calls <= 3  # waits of 0.06 and 0.12, then one of 0.24 that would go beyond the deadline


async def test_a_mistake_of_the_user_ends_the_run_at_once() -> None:
    with pytest.raises(UserError, match="no such model"):
        await Guard(Scripted(UserError("no such model")), config("abstain")).score(PROMPT, [sample()])
