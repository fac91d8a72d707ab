"""A real vLLM engine asked in its chat format: replies held to a schema, and the request's own sampling settings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from actors.dispatch import DispatchSettings
from actors.pool import RolloutPool
from actors.worker import RolloutWorker
from launch.chat_engine import EngineChat
from lwz_ray.benchmarks.questions import CriterionQuestion
from lwz_ray.chat import ChatRequest
from lwz_ray.verdicts import score_verdict
from tests.benchmark_parts import criterion
from tests.pool_parts import completion
from tests.rollout_parts import collect, samples_of

pytestmark = pytest.mark.vllm

QUESTION = CriterionQuestion("Write about tea.", "Tea is hot.", criterion("plot"))
SCORES = score_verdict("plot", "style", low=1, high=5).model_json_schema()
# A reason has no longest length: a model that writes at random would never end it.
SCHEMA = {**SCORES, "properties": {k: v for k, v in SCORES["properties"].items() if k != "reason"}}
SCHEMA["required"] = ["plot", "style"]
REQUEST = ChatRequest(tuple(QUESTION.messages()), 48, 1.0, 1.0, 7, SCHEMA)


@pytest_asyncio.fixture
async def chat(vllm_worker: RolloutWorker, tiny_model_dir: Path):
    """Ask the tiny random model, which writes noise unless it is held to something."""
    pool = RolloutPool(60.0, DispatchSettings())
    pool.add_worker("a", vllm_worker.stream)
    yield EngineChat(pool, AutoTokenizer.from_pretrained(tiny_model_dir), 512, seed=1)
    await pool.close()


async def test_a_reply_keeps_to_its_schema_and_to_its_sampling_settings(chat: EngineChat) -> None:
    replies = [await chat.reply(replace(REQUEST, seed=seed)) for seed in range(4)]
    assert {reply.finish_reason for reply in replies} == {"stop"}
    found = [json.loads(reply.text) for reply in replies]
    assert all(set(scores) == {"plot", "style"} for scores in found)
    assert {score for scores in found for score in scores.values()} <= {1, 2, 3, 4, 5}
    # No white space between the parts.
    assert [reply.text for reply in replies] == [json.dumps(scores, separators=(",", ":")) for scores in found]

    free = replace(REQUEST, schema=None, max_tokens=12)
    greedy = await chat.reply(replace(free, temperature=0.0))
    assert (greedy.finish_reason, greedy.completion_tokens) == ("length", 12)
    # The likeliest token alone has a share of 1e-6: top_p leaves nothing else, at any temperature.
    assert (await chat.reply(replace(free, top_p=1e-6))).text == greedy.text
    assert (await chat.reply(free)).text != greedy.text
    assert chat.usage["calls"] == 7


async def test_a_reply_that_was_interrupted_begins_anew_under_its_schema(vllm_worker: RolloutWorker) -> None:
    plain = samples_of([1, 2, 3], 1, 5, max_tokens=48, priors=[completion(4, "abort")])
    (again,) = await collect(vllm_worker.stream(replace(plain, json_schema=json.dumps(SCHEMA)), 60.0))
    assert set(json.loads(again.text)) == {"plot", "style"}
    (gone_on,) = await collect(vllm_worker.stream(plain, 60.0))
    assert gone_on.token_ids[:4].tolist() == [1, 2, 3, 4]
