"""A model behind an endpoint, asked by curation and evaluation: a real HTTP server on loopback."""

import asyncio

import pytest

from lwz_ray.chat import ChatFailedError, ChatReply, ChatRequest
from lwz_ray.errors import UserError
from rewards.chat_endpoint import EndpointChat
from tests.unit.rewards.judge_parts import DOWN, KEY, judge_config
from tests.unit.rewards.judge_server import JudgeServer, Reply, serve

HELLO = Reply(content="Hello!")
SCHEMA = {"type": "object"}


def request(seed: int = 7, schema: dict | None = None) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": "Greet me."},), 32, 0.8, 0.95, seed, schema)


async def test_a_reply_arrives_with_its_tokens_and_the_settings_go_out() -> None:
    async with serve(JudgeServer([HELLO])) as server:
        chat = EndpointChat(judge_config(server.base_url, price_input=2.0, price_output=10.0), seed=1)
        assert await chat.reply(request(schema=SCHEMA)) == ChatReply("Hello!", "stop", 100, 20)
        assert await chat.reply(request(8)) == ChatReply("Hello!", "stop", 100, 20)
        assert chat.name == "judge-model"
        # 200 prompt tokens at 2 and 40 completion tokens at 10 per million.
        assert {k: v for k, v in chat.usage.items() if v} == {
            "calls": 2,
            "prompt_tokens": 200,
            "completion_tokens": 40,
            "cost": pytest.approx(0.0008),
        }
        await chat.close()
    first, second = server.bodies
    sent = {"model": "judge-model", "temperature": 0.8, "top_p": 0.95, "max_tokens": 32, "seed": 7}
    assert {name: first[name] for name in sent} == sent
    assert first["messages"] == [{"role": "user", "content": "Greet me."}]
    assert first["response_format"]["json_schema"]["schema"] == SCHEMA
    assert second["seed"] == 8
    assert "response_format" not in second


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Reply(content="Once upon a", finish_reason="length"), ChatReply("Once upon a", "length", 100, 20)),
        (Reply(content="Hi", usage=False), ChatReply("Hi", "stop", None, None)),
        (
            Reply(raw='{"choices": [{"finish_reason": "length", "message": {"content": null}}]}'),
            ChatReply("", "length", None, None),
        ),
    ],
)
async def test_a_reply_that_is_cut_off_is_a_reply(said: Reply, expected: ChatReply) -> None:
    async with serve(JudgeServer([said])) as server:
        chat = EndpointChat(judge_config(server.base_url), seed=1)
        found = await chat.reply(request())
        assert (found, found.whole) == (expected, expected.finish_reason == "stop")
        await chat.close()
    assert len(server.bodies) == 1


async def test_what_may_pass_is_tried_again() -> None:
    # Half of a character cannot be kept in a file.
    half = Reply(raw=r'{"choices": [{"finish_reason": "stop", "message": {"content": "Hi \ud83d"}}]}')
    async with serve(JudgeServer([DOWN, Reply(drop=True), Reply(raw="{"), half, HELLO])) as server:
        chat = EndpointChat(judge_config(server.base_url, max_retries=4), seed=1)
        assert (await chat.reply(request())).text == "Hello!"
        assert (chat.usage["calls"], chat.usage["retries"]) == (5, 4)
        await chat.close()


async def test_an_endpoint_that_is_gone_ends_the_run_after_eight_requests() -> None:
    async with serve(JudgeServer([HELLO, *[DOWN] * 7, HELLO, DOWN])) as server:
        chat = EndpointChat(judge_config(server.base_url, max_retries=0), seed=1)
        said = [await failure(chat) for _ in range(16)]
        # A reply in between begins the count anew.
        assert said == [None, *["server_error"] * 7, None, *["server_error"] * 7]
        with pytest.raises(UserError) as caught:
            await chat.reply(request())
        await chat.close()
    assert str(caught.value) == (
        "8 requests in a row were left without a reply, the last one because of the judge at "
        f"{server.base_url}: 500: the server says no (attempt 1, the last); see that the server at judge.base_url "
        "runs, then go on with run.resume=auto: what it has answered is kept"
    )


async def failure(chat: EndpointChat) -> str | None:
    try:
        await chat.reply(request())
    except ChatFailedError as error:
        return error.reason
    return None


async def test_a_request_that_is_refused_says_nothing_about_the_others() -> None:
    refused = Reply(status=400, error="your text of 40,000 tokens is too long")
    async with serve(JudgeServer([refused])) as server:
        chat = EndpointChat(judge_config(server.base_url), seed=1)
        with pytest.raises(ChatFailedError) as caught:
            await chat.reply(request())
        assert (caught.value.reason, caught.value.blame) == ("rejected", "data")
        assert "40,000 tokens" in str(caught.value)
        assert [await failure(chat) for _ in range(9)] == ["rejected"] * 9
        await chat.close()


async def test_a_refused_key_is_the_users_to_mend_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    async with serve(JudgeServer([Reply(status=401, error=f"no such key: {KEY}")])) as server:
        chat = EndpointChat(judge_config(server.base_url, api_key_env="JUDGE_KEY"), seed=1)
        with pytest.raises(UserError, match=r"answered 401: no such key: \[hidden\]; name an environment variable"):
            await chat.reply(request())
        await chat.close()
    assert server.authorizations == [f"Bearer {KEY}"]


async def test_no_more_than_the_limit_at_once_and_a_long_wait_is_not_begun() -> None:
    async with serve(JudgeServer([Reply(content="x", delay_s=0.05)])) as server:
        chat = EndpointChat(judge_config(server.base_url, max_concurrency=3), seed=1)
        await asyncio.gather(*(chat.reply(request(seed)) for seed in range(12)))
        await chat.close()
    assert server.most_in_flight == 3
    later = Reply(status=429, headers={"Retry-After": "90"})
    async with serve(JudgeServer([later])) as server:
        # 3 attempts of at most 20 s each, and their waits: 90 s more is not in it.
        chat = EndpointChat(judge_config(server.base_url), seed=1)
        with pytest.raises(ChatFailedError, match=r"the next attempt is due in 90 s, 60 s are left"):
            await chat.reply(request())
        await chat.close()
