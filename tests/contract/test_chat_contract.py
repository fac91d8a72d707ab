"""What everyone who asks a language model relies on, whoever answers: an endpoint, an engine, or kept replies."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from actors.dispatch import DispatchSettings
from actors.pool import RolloutPool
from actors.streams import CompletionStream
from actors.tasks import WorkerRequest
from launch.chat_engine import EngineChat
from launch.chat_store import CachedChat
from lwz_ray.chat import ChatModel, ChatRequest
from rewards.chat_endpoint import EndpointChat
from tests.pool_parts import completion
from tests.unit.rewards.judge_parts import judge_config
from tests.unit.rewards.judge_server import JudgeServer, Reply, serve

REQUEST = ChatRequest(({"role": "user", "content": "Greet me."},), 32, 0.5, 0.9, 7)
CUT = Reply(content="3 tokens", finish_reason="length")


async def cut_after_three(request: WorkerRequest, timeout_s: float) -> CompletionStream:
    """Write three tokens to each request, and no more."""
    for task in request.tasks:
        await asyncio.sleep(0)
        yield task.sample_index, completion(3, "length")


@pytest_asyncio.fixture(params=["endpoint", "engine", "cached endpoint", "cached engine"])
async def chat(request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path: Path) -> AsyncIterator[ChatModel]:
    async with AsyncExitStack() as stack:
        if "endpoint" in request.param:
            server = await stack.enter_async_context(serve(JudgeServer([CUT])))
            found: ChatModel = EndpointChat(judge_config(server.base_url), seed=1)
        else:
            pool = RolloutPool(5.0, DispatchSettings())
            pool.add_worker("a", cut_after_three)
            stack.push_async_callback(pool.close)
            found = EngineChat(pool, AutoTokenizer.from_pretrained(tiny_model_dir), 256, seed=1)
        yield CachedChat(found, tmp_path / "asked.jsonl") if "cached" in request.param else found


async def test_replies_say_how_they_ended_and_everything_is_counted(chat: ChatModel) -> None:
    assert chat.name.endswith(("judge-model", "tiny-random"))
    assert [chat.usage[name] for name in ("calls", "retries", "prompt_tokens", "completion_tokens")] == [0, 0, 0, 0]
    requests = [ChatRequest(REQUEST.messages, 32, 0.5, 0.9, seed) for seed in range(6)]
    replies = await asyncio.gather(*(chat.reply(request) for request in requests))
    assert {(reply.text, reply.finish_reason, reply.whole) for reply in replies} == {("3 tokens", "length", False)}
    assert chat.usage["calls"] == 6
    for name, read in COUNTED.items():
        assert chat.usage[name] == sum(read(reply) or 0 for reply in replies) > 0
    await chat.close()
    await chat.close()


COUNTED: dict[str, Callable] = {
    "prompt_tokens": lambda reply: reply.prompt_tokens,
    "completion_tokens": lambda reply: reply.completion_tokens,
}
