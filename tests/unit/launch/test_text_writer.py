"""The text writer over a real pool with tiny engines, and the store that it fills."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.dispatch import DispatchSettings
from actors.engine import EngineSettings
from actors.pool import RolloutPool
from actors.streams import CompletionStream
from actors.tasks import WorkerRequest
from actors.tiny_engine import TinyEngine
from actors.worker import RolloutWorker
from launch.text_account import text_account
from launch.text_store import TextStore
from launch.text_writer import TextWriter
from lwz_ray.config import Config
from lwz_ray.encoding import PromptEncoder
from lwz_ray.errors import UserError
from lwz_ray.records import Prompt
from lwz_ray.texts import WrittenText

VOCABULARY = {
    word: i for i, word in enumerate(["[?]", "write", "about", "clams", "kites", "bread", "<", ">", "answer"])
}
SETTINGS = EngineSettings(
    model_path="", dtype="float32", max_length_tokens=64, max_num_seqs=8, temperature=1.0, top_p=1.0, max_tokens=12,
    stop="</answer>",
)  # fmt: skip
PROMPTS = [Prompt(s, f"write about {s}", "en", (2, 9 + i), i) for i, s in enumerate(["clams", "kites", "bread"])]


class CountedEngine(TinyEngine):
    """Knows how many tasks it was given, and in which order their prompts came."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, torch.randn(9, 9, generator=torch.Generator().manual_seed(1)))
        self.asked: list[int] = []

    def stream(self, request: WorkerRequest, request_id: str) -> CompletionStream:
        self.asked += [request.prompt_token_ids[2]] * len(request.tasks)
        return super().stream(request, request_id)


class Case:
    """A run folder and engines to write into it."""

    def __init__(self, folder: Path, config: Config, engine: CountedEngine, pool: RolloutPool) -> None:
        self.folder, self.config, self.engine, self.pool = folder, config, engine, pool
        words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[?]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        self.encoder = PromptEncoder(tokenizer, config.template)
        self.lines: list[dict[str, Any]] = []

    async def write(self, prompts: list[Prompt], samples: int, on_text: Callable[[WrittenText], None] = lambda _: None):
        store = TextStore(self.folder, self.config)
        report: Callable[[dict[str, Any], str], None] = lambda metrics, words: self.lines.append(metrics)  # noqa: E731
        return await TextWriter(self.config, self.pool, self.encoder, store, report, on_text).run(prompts, samples)


@pytest_asyncio.fixture
async def case(tmp_path: Path, make_config: Callable[..., Config]) -> AsyncIterator[Case]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    config = make_config(
        stage="generate",
        model={"path": str(tmp_path / "model"), "max_length_tokens": 64},
        data={"max_prompt_tokens": 52},
        sampling={"max_tokens": 12},
        template={"en": "{request}", "chat": False},
    )
    engine = CountedEngine()
    worker = RolloutWorker(engine, (str(tmp_path),), 1000)
    await worker.start()
    pool = RolloutPool(10.0, DispatchSettings())
    pool.add_worker("w0", worker.stream)
    yield Case(tmp_path, config, engine, pool)
    await pool.close()
    await worker.close()


async def test_what_is_there_is_not_written_again(case: Case):
    first = await case.write(PROMPTS[:2], 2)
    assert [(t.prompt_id, t.sample_index) for t in first] == [("clams", 0), ("clams", 1), ("kites", 0), ("kites", 1)]
    assert len({t.completion for t in first}) == 4
    assert sorted(case.engine.asked) == [3, 3, 4, 4]
    assert case.lines[-1]["generate/texts"] == 4
    assert case.lines[-1]["generate/tokens"] == sum(t.num_tokens for t in first)
    again = await case.write(PROMPTS, 2)
    assert again[:4] == first
    assert case.engine.asked[4:] == [5, 5]
    assert case.lines[-1]["generate/tokens"] == sum(t.num_tokens for t in again[4:])
    # A text depends on its request and its place alone.
    fresh = Case(case.folder / "model", case.config, case.engine, case.pool)
    assert await fresh.write([PROMPTS[2]], 2) == again[4:]


async def test_the_longest_request_is_asked_for_first(case: Case):
    await case.write(PROMPTS, 1)
    assert case.engine.asked == [5, 4, 3]


async def test_an_interruption_loses_no_text_that_has_ended(case: Case):
    ended: list[WrittenText] = []

    def stop_after_three(text: WrittenText) -> None:
        ended.append(text)
        if len(ended) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await case.write(PROMPTS, 2, stop_after_three)
    (path,) = (case.folder / "written").iterdir()
    lines = path.read_text().splitlines()
    assert [WrittenText.from_dict(json.loads(line), "a line") for line in lines[:3]] == ended[:3]
    path.write_text("\n".join(lines) + '\n{"prompt_id": "bre')  # a kill in the middle of a line
    num_asked = len(case.engine.asked)
    texts = await case.write(PROMPTS, 2)
    assert len(texts) == 6 and set(ended) <= set(texts)
    assert len(case.engine.asked) - num_asked == 6 - len(lines)
    assert len(path.read_text().splitlines()) == 6


async def test_other_requests_settings_or_weights_are_written_anew(case: Case):
    await case.write([PROMPTS[0]], 1)
    await case.write([Prompt("clams", "write about kites", "en", None, 0)], 1)
    assert case.engine.asked == [3, 4]
    warmer = case.config.sampling.model_copy(update={"temperature": 0.7})
    case.config = case.config.model_copy(update={"sampling": warmer})
    await case.write([PROMPTS[0]], 1)
    (case.folder / "model" / "model.safetensors").write_bytes(b"other weights")
    await case.write([PROMPTS[0]], 1)
    assert case.engine.asked == [3, 4, 3, 3]


async def test_a_nearly_full_context_limits_and_a_full_one_is_refused(case: Case):
    long = Prompt("long", "write " * 59, "en", None, 0)
    (text,) = await case.write([long], 1)  # the prefill takes three tokens
    assert (text.num_tokens, text.finish_reason) == (2, "length")
    full = Prompt("full", "write " * 90, "en", None, 0)
    num_asked = len(case.engine.asked)
    with pytest.raises(UserError, match=r"request 'full' has 93 tokens with its template, .* leaves no room"):
        await case.write([PROMPTS[1], full], 1)
    assert len(case.engine.asked) == num_asked


def text_of(prompt_id: str, answer: str, finish_reason: str, **other: Any) -> WrittenText:
    row = {"prompt_id": prompt_id, "prompt": "q", "answer": answer, "finish_reason": finish_reason, "num_tokens": 10}
    return WrittenText.from_dict({**row, **other}, "a text")


def test_the_account():
    prompts = [Prompt("a", "q", "en", (2, 3), 0), Prompt("b", "q", "en", (5, 9), 1), Prompt("c", "问", "zh", None, 2)]
    texts = [
        text_of("a", "one two", "stop"),
        text_of("b", "one two three", "length", think="x y", num_think_tokens=2, well_formed=False),
        text_of("c", "一二三四", "stop", language="zh"),
    ]
    found = text_account(prompts, texts, 3)
    assert found["words"] == {"mean": 3.0, "median": 3.0, "p10": 2.2, "p90": pytest.approx(3.8)}
    assert (found["asked_for_length"], found["in_range"]) == (2, 0.5)
    assert (found["with_plan"], found["think_tokens"]["mean"]) == (1, 2.0)
    assert found["finish_reasons"] == {"stop": 2, "length": 1, "repetition": 0, "abort": 0}
    assert found["well_formed"] == pytest.approx(2 / 3)
    assert found["by_language"]["zh"]["words"]["mean"] == 4.0
    assert found["by_language"]["zh"]["in_range"] is None
    assert text_account(prompts, [], 3)["words"] is None
