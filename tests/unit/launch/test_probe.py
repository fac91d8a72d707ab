"""A probe tells an engine on other weights, or without an answer, from those on the learner's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from actors.streams import CompletionStream, StreamCall
from actors.tasks import WorkerRequest
from actors.tiny_engine import TinyEngine
from launch.probe import probe, probe_warning
from learners.policy_objective import PolicyObjective
from tests.learner_parts import algorithm
from tests.table_learner import VOCABULARY, BigramModel, TableLearner
from tests.weight_parts import ENGINE, tiny_worker

LOGITS = torch.linspace(-1.0, 1.0, VOCABULARY**2).reshape(VOCABULARY, VOCABULARY).sin()


@pytest.fixture
def learner() -> TableLearner:
    model = BigramModel()
    model.table.data = LOGITS.clone()
    return TableLearner(model, PolicyObjective(algorithm(), 1.0), 0.1)


async def calls_of(folder: Path, **shifts: float) -> dict[str, StreamCall]:
    """Start an engine for each name, whose first logit of every row is off by so much."""
    out: dict[str, StreamCall] = {}
    for name, shift in shifts.items():
        table = LOGITS.clone()
        table[:, 0] += shift
        out[name] = (await tiny_worker(folder, TinyEngine(ENGINE, table))).stream
    return out


async def test_the_same_weights_agree_to_rounding(tmp_path: Path, learner: TableLearner) -> None:
    found = await probe(await calls_of(tmp_path, a=0.0, b=0.0), learner, [3, 2], 0.05, 5.0, max_tokens=8)
    assert found["off"] == [] and probe_warning(found) is None
    assert found["engines"]["a"] == found["engines"]["b"]  # the same seeds write the same
    assert found["engines"]["a"]["max"] < 1e-5


async def test_other_weights_are_off_by_what_they_differ(tmp_path: Path, learner: TableLearner) -> None:
    found = await probe(await calls_of(tmp_path, new=0.0, old=2.0), learner, [3, 2], 0.05, 5.0, max_tokens=8)
    assert found["off"] == ["old"]
    # Token 0 is e^2 times as likely before it is normalised: 2 nats at most for it, and less than 2 for the others.
    assert 0.05 < found["engines"]["old"]["mean"] < found["engines"]["old"]["max"] < 2.0
    assert probe_warning(found) == (
        "1 of 2 rollout engines do not answer as the learner's weights would (tolerance 0.05 nats): "
        "old 1.27 nats a token"
    )


async def test_a_small_step_is_seen_against_an_engine_that_took_it(tmp_path: Path, learner: TableLearner) -> None:
    found = await probe(await calls_of(tmp_path, new=0.0, old=0.05), learner, [3, 2], 0.5, 5.0, max_tokens=8)
    assert found["engines"]["old"]["mean"] < 0.05 and found["off"] == ["old"]


async def test_an_engine_that_does_not_answer_is_off(tmp_path: Path, learner: TableLearner) -> None:
    calls = await calls_of(tmp_path, good=0.0)
    mute = TinyEngine(ENGINE, LOGITS)
    worker: Any = await tiny_worker(tmp_path, mute)
    await mute.pause()
    found = await probe({**calls, "mute": worker.stream}, learner, [3, 2], 0.05, 0.1, max_tokens=8)
    assert found["off"] == ["mute"]
    assert found["engines"]["mute"]["error"].startswith("waited 0.1 s for 4 of 4 completions")


async def test_an_engine_that_fails_without_words_is_off_by_its_name(learner: TableLearner) -> None:
    async def fail(request: WorkerRequest, timeout_s: float) -> CompletionStream:
        raise TimeoutError
        yield

    found = await probe({"mute": fail}, learner, [3, 2], 0.05, 5.0)
    assert found["engines"] == {"mute": {"error": "TimeoutError"}} and found["off"] == ["mute"]


async def test_no_engine_at_all_is_nothing_to_warn_of(learner: TableLearner) -> None:
    assert await probe({}, learner, [3, 2], 0.05, 5.0) == {"tolerance": 0.05, "engines": {}, "off": []}
