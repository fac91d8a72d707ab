"""What the tests of `recipe=chat_logs` share: a server that sorts requests by their words, and a run against it."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from launch.compose import compose
from launch.preflight_chat_logs import check
from launch.run_folder import RunFolder
from launch.stages.curate_chat_logs import ChatLogsStage
from launch.stages.lifecycle import leased
from lwz_ray.config import Config
from tests.unit.rewards.judge_server import GOOD, JudgeServer, completion, serve, texts_of

LONG = ("story", "report", "guide", "novel", "essay", "proposal", "PDF", "散文", "科幻", "总结")
RANGES = {
    "PDF": [0, 0],
    "parish": [1000, 1500],
    "beekeepers": [2000, 3000],
    "library": [1150, 1500],
    "museums": [900, 1400],
}


class SortingServer(JudgeServer):
    """Sorts requests by their words; `broken` requests get a reply that is no verdict."""

    broken: tuple[str, ...] = ()
    stopped_at: int | None = None
    """Requests after so many are refused as a server that is down does."""
    interrupts_at: int | None = None
    """The request at which this process gets SIGINT."""
    refuses_schemas = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.stopped_at is not None and len(self.bodies) > self.stopped_at:
            return web.json_response({"error": {"message": "down"}}, status=500)
        if self.refuses_schemas and "response_format" in body:
            return web.json_response({"error": {"message": "no response_format here"}}, status=400)
        if len(self.bodies) == self.interrupts_at:
            os.kill(os.getpid(), signal.SIGINT)
        return web.json_response(completion(self.content(body), GOOD))

    def content(self, body: dict[str, Any]) -> str:
        if len(body["messages"]) == 1:
            return "ready"
        text = texts_of(body)["REQUEST"]
        if any(word in text for word in self.broken):
            return "That one needs a long text, I would say."
        if '"needed"' in body["messages"][0]["content"]:
            return json.dumps({"reason": "sorted by its words", "needed": any(word in text for word in LONG)})
        found = next((pair for word, pair in RANGES.items() if word in text), [800, 1200])
        return json.dumps({"reason": "its kind", "range": found})


def config_of(tmp_path: Path, server: JudgeServer, *words: str, name: str = "logs") -> Config:
    return compose(
        [
            "run=curate_logs", f"run.dir={tmp_path}", f"run.name={name}", "run.git_revision=0123abc",
            "curate.chat_logs.asked=endpoint", f"judge.base_url={server.base_url}", "judge.model=sorter",
            "judge.max_retries=0", "judge.max_concurrency=4", "judge.price_input=1", "judge.price_output=2", *words,
        ]
    )  # fmt: skip


async def curate(config: Config) -> int:
    check(config)
    with leased(config) as lease:
        return await ChatLogsStage(config, lease, RunFolder.open(config, ["test"], lease=lease)).run()


@asynccontextmanager
async def sorting() -> AsyncIterator[SortingServer]:
    server = SortingServer()
    async with serve(server):
        yield server
