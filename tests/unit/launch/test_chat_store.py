"""Replies that are kept: nothing is asked twice, a crash loses none, and only what decides a reply tells them apart."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.chat_store import CachedChat, request_key
from lwz_ray.chat import ChatFailedError, ChatReply, ChatRequest
from lwz_ray.errors import UserError
from rewards.chat_endpoint import EndpointChat
from tests.unit.rewards.judge_parts import DOWN, judge_config
from tests.unit.rewards.judge_server import JudgeServer, Reply, serve

REQUEST = ChatRequest(({"role": "user", "content": "Greet me."},), 32, 0.8, 0.95, 7)
HELLO = Reply(content="你好 Hello!")


def asked(server: JudgeServer, path: Path, identity: Any = None, **changes: Any) -> CachedChat:
    return CachedChat(EndpointChat(judge_config(server.base_url, max_retries=0, **changes), seed=1), path, identity)


async def test_a_rerun_asks_nothing_and_a_crash_loses_at_most_the_line_that_was_being_written(tmp_path: Path) -> None:
    path = tmp_path / "asked" / "judge.jsonl"
    async with serve(JudgeServer([HELLO])) as server:
        chat = asked(server, path)
        first = await chat.reply(REQUEST)
        assert first == await chat.reply(REQUEST) == ChatReply("你好 Hello!", "stop", 100, 20)
        assert (chat.usage["calls"], chat.usage["cached"]) == (1, 1)
        await chat.reply(replace(REQUEST, seed=8))
        # No close: the process is killed while it writes a third line.
        whole = path.read_text(encoding="utf-8")
        path.write_text(whole + '{"key": "abc", "te', encoding="utf-8")
        again = asked(server, path)
        assert await again.reply(REQUEST) == first
        assert (again.usage["calls"], again.usage["cached"]) == (0, 1)
        await again.reply(replace(REQUEST, seed=9))
        await again.close()
        await chat.close()
    assert len(server.bodies) == 3
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [set(row) for row in rows] == [
        {"key", "about", "model", "text", "finish_reason", "prompt_tokens", "completion_tokens"}
    ] * 3
    assert {k: rows[0][k] for k in ("about", "model", "text")} == {
        "about": None,
        "model": "judge-model",
        "text": "你好 Hello!",
    }


async def test_the_same_request_asked_at_once_is_asked_once_and_a_failure_is_not_kept(tmp_path: Path) -> None:
    async with serve(JudgeServer([DOWN, Reply(content="x", delay_s=0.05)])) as server:
        chat = asked(server, tmp_path / "judge.jsonl")
        with pytest.raises(ChatFailedError):
            await chat.reply(REQUEST)
        replies = await asyncio.gather(*(chat.reply(REQUEST) for _ in range(5)))
        assert {reply.text for reply in replies} == {"x"}
        await chat.close()
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"messages": ({"role": "user", "content": "Greet him."},)},
        {"messages": ({"role": "system", "content": "Greet me."},)},
        {"max_tokens": 33},
        {"temperature": 0.7},
        {"top_p": 1.0},
        {"seed": 8},
        {"schema": {"type": "object"}},
        {"key": "greeting/1"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_a_reply_makes_another_key(change: dict[str, Any]) -> None:
    assert request_key("m", None, replace(REQUEST, **change)) != request_key("m", None, REQUEST)


def test_a_key_stands_for_the_messages_and_the_model_counts() -> None:
    one, two = (
        replace(REQUEST, key="greeting/1", messages=({"role": "user", "content": f"[BEGIN {nonce}]"},))
        for nonce in ("0a", "1b")
    )
    assert request_key("m", None, one) == request_key("m", None, two)
    assert len({request_key("m", None, one), request_key("n", None, one), request_key("m", {"step": 1}, one)}) == 3


@pytest.mark.parametrize(
    ("line", "says"),
    [("not json\n", "line 1: not JSON"), ('{"key": "k", "text": "t"}\n', "reply 1: has no 'finish_reason'")],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "judge.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=says):
        CachedChat(EndpointChat(judge_config("http://127.0.0.1:1/v1"), seed=1), path)


async def test_a_file_whose_last_line_lost_its_end_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    async with serve(JudgeServer([HELLO])) as server:
        chat = asked(server, path)
        await chat.reply(REQUEST)
        path.write_text(path.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")  # as an editor may leave it
        await asked(server, path).reply(replace(REQUEST, seed=8))
        again = asked(server, path)
        assert await again.reply(REQUEST) == await again.reply(replace(REQUEST, seed=8))
        assert again.usage["calls"] == 0
        await chat.close()
    assert len(server.bodies) == 2
