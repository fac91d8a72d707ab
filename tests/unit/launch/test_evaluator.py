"""An evaluation whose groups never come, because nobody replaces the engines any more."""

import asyncio
from typing import Any

import pytest

from launch.evaluator import Evaluator
from lwz_ray.data import load_eval_prompts
from lwz_ray.failures import BudgetExceededError, FailureLog


class Endless:
    """Makes no group; counts those that were asked for and given up."""

    def __init__(self) -> None:
        self.asked = self.given_up = 0

    async def make(self, *group: Any) -> None:
        self.asked += 1
        try:
            await asyncio.sleep(60.0)
        finally:
            self.given_up += 1


async def test_an_exceeded_budget_ends_an_evaluation(make_config):
    config = make_config()
    maker, failures = Endless(), FailureLog({"rollout_lost": ("failures.max_rollout_losses", 0)})
    prompts = load_eval_prompts(config, lambda _: 0).prompts
    evaluator: Any = Evaluator(config, maker, prompts, failures)  # pyright: ignore[reportArgumentType]
    asyncio.get_running_loop().call_later(0.05, failures.record, "rollout_lost", "rollout actor 1 was lost")
    with pytest.raises(BudgetExceededError, match=r"rollout_lost: 1 times, .*max_rollout_losses=0"):
        await asyncio.wait_for(evaluator.run(), 20.0)
    assert (maker.asked, maker.given_up) == (len(prompts), len(prompts))


async def test_guarded_work_ends_as_it_would_alone():
    async def gives(value: int) -> int:
        return value

    async def breaks() -> None:
        raise KeyError("x")

    failures = FailureLog({})
    assert await failures.guard(gives(3)) == 3
    with pytest.raises(KeyError):
        await failures.guard(breaks())
