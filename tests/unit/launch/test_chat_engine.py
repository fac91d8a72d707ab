"""A model in engines of the run, asked in its chat format through the real rollout pool."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from actors.tasks import WorkerRequest
from launch.chat_engine import EngineChat
from lwz_ray.chat import ChatFailedError, ChatReply, ChatRequest
from lwz_ray.errors import InfrastructureError, UserError
from lwz_ray.records import FinishReason
from tests.pool_parts import HandEngine, make_pool, settle

REQUEST = ChatRequest(
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Greet me."}), 32, 0.0, 0.9, 7
)
PROMPT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGreet me.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def engine_chat(tokenizer: Any, max_length_tokens: int = 512, seed: int = 1, **pool: Any) -> tuple[EngineChat, Any]:
    rollouts, engines = make_pool("a", **pool)
    return EngineChat(rollouts, tokenizer, max_length_tokens, seed), engines["a"]


async def answered(
    chat: EngineChat, engine: HandEngine, request: ChatRequest = REQUEST, finish_reason: FinishReason = "stop"
) -> tuple[ChatReply, WorkerRequest]:
    """Let the engine write 3 tokens; return the reply and what the engine was asked for."""
    task = asyncio.create_task(chat.reply(request))
    await settle()
    engine.end_all(finish_reason=finish_reason)
    return await task, engine.requests[-1]


async def test_the_engine_is_asked_in_the_chat_format_with_the_requests_own_settings(tokenizer: Any) -> None:
    chat, engine = engine_chat(tokenizer)
    reply, asked = await answered(chat, engine)
    num_prompt_tokens = len(asked.prompt_token_ids)
    assert reply == ChatReply("3 tokens", "stop", num_prompt_tokens, 3)
    assert tokenizer.decode(asked.prompt_token_ids) == PROMPT
    assert (asked.temperature, asked.top_p, asked.max_tokens, asked.json_schema) == (0.0, 0.9, 32, None)
    assert len(asked.tasks) == 1
    assert chat.usage == {
        "calls": 1,
        "retries": 0,
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": 3,
    }
    assert chat.name == tokenizer.name_or_path


async def test_a_schema_goes_along_and_a_cut_reply_says_so(tokenizer: Any) -> None:
    chat, engine = engine_chat(tokenizer)
    held = ChatRequest(REQUEST.messages, 32, 0.5, 1.0, 7, {"type": "object"})
    for reason in ("length", "repetition"):
        reply, asked = await answered(chat, engine, held, reason)
        assert (reply.finish_reason, reply.whole) == (reason, False)
        assert asked.json_schema == '{"type": "object"}'


async def test_the_draw_depends_on_run_and_request_alone(tokenizer: Any) -> None:
    seeds = []
    for run, request in [
        (1, REQUEST),
        (1, REQUEST),
        (2, REQUEST),
        (1, ChatRequest(REQUEST.messages, 32, 0.0, 0.9, 8)),
        (1, ChatRequest(({"role": "user", "content": "Greet him."},), 32, 0.0, 0.9, 7)),
    ]:
        chat, engine = engine_chat(tokenizer, seed=run)
        _, asked = await answered(chat, engine, request)
        seeds.append(asked.tasks[0].seed)
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


async def test_a_reply_gets_what_the_context_leaves_and_a_request_that_fills_it_is_refused(tokenizer: Any) -> None:
    num_prompt_tokens = len(tokenizer(PROMPT)["input_ids"])
    chat, engine = engine_chat(tokenizer, num_prompt_tokens + 5)
    _, asked = await answered(chat, engine)
    assert asked.max_tokens == 5
    chat, engine = engine_chat(tokenizer, num_prompt_tokens)
    with pytest.raises(ChatFailedError, match=f"of {num_prompt_tokens} tokens leaves no room") as caught:
        await chat.reply(REQUEST)
    assert (caught.value.reason, caught.value.blame, engine.requests) == ("too_long", "data", [])


async def test_no_answer_in_time_and_a_cut_by_the_deadline_are_failures(tokenizer: Any) -> None:
    chat, _ = engine_chat(tokenizer, timeout_s=0.05)
    with pytest.raises(ChatFailedError, match=r"waited 0\.05 s for 1 of 1 samples") as caught:
        await chat.reply(REQUEST)
    assert caught.value.reason == "timeout"
    # A deadline of nothing: the sample comes back at once with what it has, and counts as ended.
    chat, engine = engine_chat(tokenizer, sample_deadline_s=0.001)
    task = asyncio.create_task(chat.reply(REQUEST))
    await asyncio.sleep(0.02)
    engine.end_all(finish_reason="abort")
    with pytest.raises(ChatFailedError, match=r"actors\.sample_deadline_s") as caught:
        await task
    assert caught.value.reason == "deadline"


async def test_an_engine_that_is_gone_ends_the_run_after_eight_requests(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.dispatcher.RETRY_S", 0.0)
    chat, engine = engine_chat(tokenizer, max_sample_attempts=1)

    async def failure() -> str | None:
        task = asyncio.create_task(chat.reply(REQUEST))
        await asyncio.sleep(0.01)
        for call, _ in engine.writing:
            call.events.put_nowait(InfrastructureError("the engine died"))
        try:
            await task
        except ChatFailedError as error:
            return error.reason
        return None

    assert [await failure() for _ in range(7)] == ["engine_lost"] * 7
    await answered(chat, engine)  # a reply begins the count anew
    assert [await failure() for _ in range(7)] == ["engine_lost"] * 7
    with pytest.raises(UserError, match=r"left 8 requests in a row without a reply, .*; see Ray's logs"):
        await failure()


async def test_a_template_without_a_system_turn_gets_it_before_the_users_words(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    chat, engine = engine_chat(tokenizer)
    _, asked = await answered(chat, engine)
    assert tokenizer.decode(asked.prompt_token_ids) == "user: Be brief.\n\nGreet me.\n"


async def test_a_base_model_cannot_be_asked(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"tiny-random: its tokenizer has no chat template, so it cannot be asked"):
        engine_chat(tokenizer)
