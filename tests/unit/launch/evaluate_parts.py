"""Evaluations run whole in this process: texts that are there, and a judge over HTTP on loopback."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from launch.cli import main
from tests.benchmark_parts import write_lines
from tests.unit.rewards.judge_server import GOOD, JudgeServer, completion, serve

REQUESTS = [
    {"prompt": "Write about tea.", "type": "essay", "length": 4},
    {"prompt": "Write about rain.", "type": "essay", "length": 4},
    {"prompt": "写一写茶。", "type": "letter", "length": 4},
]
ANSWERS = ["tea is good today", "rain", "茶很好 good 2 3"]
"""Of 4, 1 and 6 words; the authors count 4 of the last, without its digits."""


class ProbedServer(JudgeServer):
    """A judge that answers a short greeting too, which is not among `bodies`."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if len((await request.json())["messages"]) == 1:
            return web.json_response(completion("ready", GOOD))
        return await super().handle(request)


@contextmanager
def serving(server: JudgeServer) -> Iterator[JudgeServer]:
    """Run a server in a thread: the stage has this process's own event loop."""
    ready, done = threading.Event(), threading.Event()

    async def live() -> None:
        async with serve(server):
            ready.set()
            await asyncio.to_thread(done.wait, 60.0)

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    try:
        assert ready.wait(20.0), "the judge did not start in 20 s"
        yield server
    finally:
        done.set()
        thread.join(20.0)


def requests_file(folder: Path, rows: Sequence[Mapping[str, Any]] = REQUESTS) -> Path:
    return write_lines(folder / "requests.jsonl", rows)


def texts_file(folder: Path, prompts: Sequence[str], answers: Sequence[str], name: str = "texts") -> Path:
    """Write the texts of another system: the least that a line must hold."""
    rows = [
        {"prompt_id": f"their-{i}", "prompt": prompt, "answer": answer, "finish_reason": "stop", "num_tokens": 8}
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    return write_lines(folder / f"{name}.jsonl", rows)


def words_of(folder: Path, name: str, *more: str) -> list[str]:
    """Return the command line of an evaluation of texts that are there, on LongBench-Write unless `more` says else."""
    return [
        "stage=evaluate",
        f"run.dir={folder / 'runs'}",
        f"run.name={name}",
        f"benchmark.path={folder / 'requests.jsonl'}",
        f"evaluate.texts_path={folder / 'texts.jsonl'}",
        "evaluate.bootstrap_resamples=50",
        "tracking.wandb=false",
        *more,
    ]


def judged_by(server: JudgeServer) -> list[str]:
    return [f"judge.base_url={server.base_url}", "judge.model=judge", "judge.max_retries=0", "judge.retry_wait_s=0.01"]


def front_door(words: Sequence[str]) -> int:
    return main(list(words))


def read(folder: Path, run: str, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / run / name).read_text())
