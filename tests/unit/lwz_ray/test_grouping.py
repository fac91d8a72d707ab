"""Making a group: scoring begins while others write, and ends with whatever ends the group."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.streams import CompletionStream
from lwz_ray.config import TemplateConfig
from lwz_ray.errors import InfrastructureError
from lwz_ray.grouping import GroupMaker, MadeGroup
from lwz_ray.records import Completion, Prompt, RolloutRequest, Sample, VersionSpan
from tests.loop_parts import WordEncoder, make_config

PROMPT = Prompt("p", "Write.", "en", (1, 3), 2)


def completion(text: str) -> Completion:
    ids = np.arange(3, dtype=np.int32)
    return Completion(text, ids, np.zeros(3, dtype=np.float32), "repetition", (VersionSpan(0, 3, 5),))


class Journal:
    """Rollouts and scorer in one, writing down what happens in which order."""

    def __init__(self, order: Sequence[int], before: Callable[[int], Any] = lambda i: None) -> None:
        """before: called, and awaited where it can be, before the i-th sample to end is sent."""
        self.events: list[str] = []
        self._order, self._before = order, before
        self._samples: list[Sample] = []

    async def stream(self, request: RolloutRequest) -> CompletionStream:
        self.events.append(f"ask {list(request.prompt_token_ids)} {request.num_samples} {request.seed}")
        self.asked = request
        try:
            for i, index in enumerate(self._order):
                waiting = self._before(i)
                if waiting is not None:
                    await waiting
                self.events.append(f"end {index}")
                yield index, completion(f"{'w ' * (index + 1)}</answer>")
        finally:
            self.events.append("closed")

    def open(self, prompt: Prompt, num_samples: int) -> "Journal":
        self.events.append(f"open {prompt.prompt_id} {num_samples}")
        return self

    def add(self, sample: Sample) -> None:
        self.events.append(f"add {sample.sample_index}")
        self._samples.append(sample)

    async def finish(self) -> list[Sample]:
        self.events.append("finish")
        return sorted(self._samples, key=lambda s: s.sample_index)

    def cancel(self) -> None:
        self.events.append("cancel")


@pytest.fixture
def template(tmp_path: Path) -> TemplateConfig:
    return make_config(tmp_path).template


async def make(journal: Journal, template: TemplateConfig, num_samples: int = 2) -> MadeGroup:
    encoder: Any = WordEncoder()
    return await GroupMaker(journal, journal, encoder, template).make(PROMPT, 9, num_samples, seed=4)


async def test_each_sample_is_scored_as_soon_as_it_ends(template: TemplateConfig) -> None:
    journal = Journal([2, 0, 1])
    made = await make(journal, template, 3)
    assert journal.events == [
        "open p 3", "ask [3, 7] 3 4", "end 2", "add 2", "end 0", "add 0", "end 1", "add 1", "closed", "finish",
    ]  # fmt: skip
    assert [(s.group_id, s.sample_index, s.num_words) for s in made.group.samples] == [(9, 0, 1), (9, 1, 2), (9, 2, 3)]
    assert [s.parsed.answer and s.parsed.answer.strip() for s in made.group.samples] == ["w", "w w", "w w w"]
    assert {s.completion.finish_reason for s in made.group.samples} == {"repetition"}
    assert made.generate_s > 0 and made.score_s >= 0


async def test_an_error_while_generating_gives_the_scoring_up(template: TemplateConfig) -> None:
    def fail(i: int) -> None:
        if i == 1:
            raise InfrastructureError("the engine is gone")

    journal = Journal([0, 1], fail)
    with pytest.raises(InfrastructureError, match="the engine is gone"):
        await make(journal, template)
    assert journal.events[2:] == ["end 0", "add 0", "closed", "cancel"]


async def test_an_error_while_scoring_ends_the_stream_too(template: TemplateConfig) -> None:
    class Broken(Journal):
        def add(self, sample: Sample) -> None:
            raise ValueError("no such component")

    journal = Broken([0, 1])
    with pytest.raises(ValueError, match="no such component"):
        await make(journal, template)
    assert journal.events[2:] == ["end 0", "closed", "cancel"]


async def test_a_cancelled_group_ends_both(template: TemplateConfig) -> None:
    journal = Journal([0, 1], lambda i: asyncio.Event().wait() if i == 1 else None)
    task = asyncio.create_task(make(journal, template))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal.events[2:] == ["end 0", "add 0", "closed", "cancel"]


async def test_a_request_says_its_length_and_its_round(template: TemplateConfig) -> None:
    journal, encoder = Journal([0, 1]), WordEncoder()
    maker: Any = GroupMaker(journal, journal, encoder, template)  # type: ignore[arg-type]
    await maker.make(PROMPT, 9, 2, seed=4, round_index=6)
    assert (journal.asked.requested_words, journal.asked.round_index) == (3, 6)
    await maker.make(Prompt("q", "Write.", "en", None, 0), 9, 2, seed=4)
    assert (journal.asked.requested_words, journal.asked.round_index) == (0, 0)
