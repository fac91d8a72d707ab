"""A judge that asks a real HTTP server on loopback, and what its tests look at."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from lwz_ray.config import JudgeConfig
from lwz_ray.errors import RewardFailure
from lwz_ray.records import Prompt
from rewards.judge import Judge
from tests.unit.rewards.judge_server import JudgeServer, Reply, serve

PROMPT = Prompt("p1", "Write about tea.", "en", None, 0, reference="good tea")
KEY = "sk-not-a-real-key-0123456789"
MALFORMED = Reply(content="I would give it a 7.")
DOWN = Reply(status=500)


def judge_config(base_url: str, **changes: Any) -> JudgeConfig:
    plain: dict[str, Any] = {
        "base_url": base_url,
        "model": "judge-model",
        "api_key_env": None,
        "mode": "pointwise",
        "rubric": "Count what is good.",
        "scale": [1, 10],
        "both_orders": True,
        "temperature": 0.0,
        "max_tokens": 64,
        "structured_output": "json_schema",
        "max_concurrency": 8,
        "timeout_s": 20,
        "max_retries": 2,
        "retry_wait_s": 0.01,
        "price_input": None,
        "price_output": None,
    }
    return JudgeConfig(**plain | changes)


@asynccontextmanager
async def judging(server: JudgeServer, deadline_s: float = 60, **changes: Any) -> AsyncIterator[Judge]:
    """Run a server and a judge that asks it."""
    async with serve(server):
        judge = Judge(judge_config(server.base_url, **changes), seed=1, deadline_s=deadline_s)
        try:
            yield judge
        finally:
            await judge.close()


async def only_failure(judge: Judge, prompt: Prompt = PROMPT) -> RewardFailure:
    (found,) = await judge.score(prompt, ["good"])
    assert isinstance(found, RewardFailure)
    assert (found.component, "\n" in found.reason) == ("judge", False)
    return found


def counted(judge: Judge) -> dict[str, float]:
    """Return what is not 0."""
    return {key.removeprefix("judge/"): value for key, value in judge.usage.items() if value}
