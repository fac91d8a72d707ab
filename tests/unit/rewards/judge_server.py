"""A chat-completions server on loopback whose judge follows rules instead of a model, and which can misbehave.

It takes the texts out of a message as the message itself marks them: by the lines that carry the id of this request.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Judging = Callable[[dict[str, str]], dict[str, Any]]
"""Gives the verdict on the texts of a message, by their names."""


def texts_of(body: dict[str, Any]) -> dict[str, str]:
    """Return name -> text of a request, by the id that its system message names."""
    system, user = (message["content"] for message in body["messages"])
    (nonce,) = set(re.findall(r"with the id ([0-9a-f]{16})\.", system))
    names = re.findall(rf"^\[BEGIN ([A-Z ]+) {nonce}\]$", user, re.MULTILINE)
    found = {}
    for name in names:
        (text,) = re.findall(
            rf"^\[BEGIN {name} {nonce}\]\n(.*?)\n\[END {name} {nonce}\]$", user, re.MULTILINE | re.DOTALL
        )
        found[name] = text
    assert len(found) == len(names)
    return found


def by_good_words(texts: dict[str, str]) -> dict[str, Any]:
    """Score 1 + 3 times the number of "good" in the answer, at most 10; of two answers the one with more wins."""
    if "ANSWER" in texts:
        return {"reason": "counted", "score": min(10, 1 + 3 * texts["ANSWER"].count("good"))}
    first, second = texts["FIRST ANSWER"].count("good"), texts["SECOND ANSWER"].count("good")
    return {"reason": "counted", "winner": "tie" if first == second else "first" if first > second else "second"}


def always_first(texts: dict[str, str]) -> dict[str, Any]:
    """Prefer whatever stands first."""
    assert {"FIRST ANSWER", "SECOND ANSWER"} < set(texts)
    return {"reason": "it stands first", "winner": "first"}


@dataclass(frozen=True)
class Reply:
    """One answer of the server; what is None is as it should be."""

    status: int = 200
    content: str | None = None
    """What the judge says, instead of its verdict."""
    finish_reason: str = "stop"
    error: str = "the server says no"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: bool = False
    """Close the connection without a word."""
    raw: str | None = None
    """The whole body."""
    usage: bool = True


GOOD = Reply()


class JudgeServer:
    """Serves one reply of `script` after the other, then the last one forever; keeps what it was asked."""

    def __init__(self, script: Sequence[Reply] = (GOOD,), judging: Judging = by_good_words) -> None:
        self.script = list(script)
        self.judging = judging
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.asked = asyncio.Event()
        """Set by the first request."""
        self.in_flight = 0
        self.most_in_flight = 0
        self.base_url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.authorizations.append(request.headers.get("Authorization"))
        body = await request.json()
        reply = self.script[min(len(self.bodies), len(self.script) - 1)]
        self.bodies.append(body)
        self.asked.set()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(reply.delay_s)
        finally:
            self.in_flight -= 1
        if reply.drop:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if reply.raw is not None:
            return web.Response(text=reply.raw, content_type="application/json", headers=reply.headers)
        if reply.status != 200:
            return web.json_response({"error": {"message": reply.error}}, status=reply.status, headers=reply.headers)
        content = json.dumps(self.judging(texts_of(body))) if reply.content is None else reply.content
        return web.json_response(completion(content, reply))


def completion(content: str, reply: Reply) -> dict[str, Any]:
    """Return a chat completion of 100 prompt tokens and 20 completion tokens."""
    choice = {"index": 0, "finish_reason": reply.finish_reason, "message": {"role": "assistant", "content": content}}
    found = {"id": "c", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return found | ({"usage": usage} if reply.usage else {})


@asynccontextmanager
async def serve(server: JudgeServer) -> AsyncIterator[JudgeServer]:
    """Run a server on a free port of loopback."""
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        (address,) = runner.addresses
        server.base_url = f"http://127.0.0.1:{address[1]}/v1"
        yield server
    finally:
        await runner.cleanup()
