"""vLLM ends a rollout that loops, and our own check ends what its patterns miss; other samples go on.

The weights make the tiny model a machine: " tea" and "." follow each other for ever, and every other token is
followed by any token at all.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file

from actors.repetition_stop import RepetitionRule
from actors.worker import RolloutWorker
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import pack_buckets
from tests.rollout_parts import collect, samples_of

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
MAX_TOKENS = 400
PATTERNS = RepetitionRule(max_pattern_tokens=64, min_repeats=4, min_looping_tokens=96, check_every_tokens=16)
SENTENCES = RepetitionRule(max_pattern_tokens=1, min_repeats=4, min_looping_tokens=12, check_every_tokens=16)
"""Token patterns of one token: the machine's loop of two is left to the sentences."""


async def publish(worker: RolloutWorker, tensors: dict[str, torch.Tensor], staging: StagingFolder) -> None:
    version = worker.engine.policy_version + 1
    paths = [staging.write(bucket) for bucket in pack_buckets(tensors.items(), version, 2**20)]
    await worker.update(version, paths, 60.0)
    staging.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def machine(vllm_worker: RolloutWorker, tiny_model_dir: Path) -> AsyncIterator[tuple[RolloutWorker, list[int]]]:
    """Publish the machine's weights; yield the worker and the two tokens that loop."""
    base = load_file(tiny_model_dir / "model.safetensors")
    base.pop("lm_head.weight", None)
    tea, end = (vllm_worker.engine.llm.get_tokenizer().encode(t)[0] for t in (" tea", "."))  # type: ignore[attr-defined]
    tensors = {name: torch.zeros_like(t) if t.dim() > 1 else torch.ones_like(t) for name, t in base.items()}
    tensors["model.embed_tokens.weight"][tea, 0] = 10.0
    tensors["model.embed_tokens.weight"][end, 0] = -10.0
    tensors["model.norm.weight"][0] = -1.0  # what follows is what differs in this dimension
    staging = StagingFolder(("/dev/shm", "/tmp"), 2**25)
    await publish(vllm_worker, tensors, staging)
    yield vllm_worker, [tea, end]
    await publish(vllm_worker, base, staging)
    staging.remove()


def set_rule(worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch, rule: RepetitionRule | None) -> None:
    engine: Any = worker.engine
    changed = replace(engine.settings, repetition_stop=rule, max_tokens=MAX_TOKENS, stop="")
    monkeypatch.setattr(engine, "settings", changed)


@pytest.mark.parametrize(("rule", "num_tokens"), [(PATTERNS, 96), (SENTENCES, 24), (None, MAX_TOKENS)])
async def test_a_loop_ends_where_the_rule_says(
    machine: tuple[RolloutWorker, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    rule: RepetitionRule | None,
    num_tokens: int,
) -> None:
    """Patterns of 24 to 64 tokens, four times: 96. Twelve sentences of a word: 24, wherever the engine was by then."""
    worker, (tea, end) = machine
    set_rule(worker, monkeypatch, rule)
    for completion in await collect(worker.stream(samples_of([tea, end], 3, 1), 60.0)):
        assert completion.finish_reason == ("repetition" if rule else "length")
        assert completion.token_ids.tolist() == [tea, end] * (num_tokens // 2)
        assert completion.text == " tea." * (num_tokens // 2)
        assert completion.rollout_logprobs.shape == (num_tokens,)
        assert np.abs(completion.rollout_logprobs).max() < 1e-3
        version = worker.engine.policy_version
        assert [(s.start, s.stop, s.policy_version) for s in completion.version_spans] == [(0, num_tokens, version)]
    assert worker.engine.llm.output_processor.request_states == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("rule", [PATTERNS, SENTENCES])
async def test_a_text_that_does_not_loop_goes_on_and_is_the_same_in_pieces(
    machine: tuple[RolloutWorker, list[int]], monkeypatch: pytest.MonkeyPatch, rule: RepetitionRule
) -> None:
    worker, _ = machine
    set_rule(worker, monkeypatch, None)
    whole = await collect(worker.stream(samples_of([2000], 2, 5), 60.0))
    set_rule(worker, monkeypatch, rule)
    pieces = await collect(worker.stream(samples_of([2000], 2, 5), 60.0))
    for a, b in zip(whole, pieces, strict=True):
        assert (a.finish_reason, a.text) == (b.finish_reason, b.text)
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_array_equal(a.rollout_logprobs, b.rollout_logprobs)
        assert a.version_spans == b.version_spans
    assert "repetition" not in {c.finish_reason for c in whole}


async def test_a_reader_that_stops_early_aborts_the_request(
    machine: tuple[RolloutWorker, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, (tea, end) = machine
    set_rule(worker, monkeypatch, None)
    engine: Any = worker.engine
    running = asyncio.create_task(collect(worker.stream(samples_of([tea, end], 2, 1), 60.0)))
    give_up = time.monotonic() + 20.0
    while (started := len(engine.llm.output_processor.request_states)) < 2:
        assert time.monotonic() < give_up, f"waited 20 s for two requests, {started} were seen"
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.llm.output_processor.request_states == {}


async def test_temperature_and_length_of_one_request(
    machine: tuple[RolloutWorker, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = machine
    set_rule(worker, monkeypatch, PATTERNS)
    usual, hot = [await collect(worker.stream(samples_of([2000], 1, 5, t, 9), 60.0)) for t in (None, 0.0)]
    assert (usual[0].num_tokens, hot[0].num_tokens) == (9, 9)
    # Every token is as likely as any other, except that a greedy choice is certain.
    assert usual[0].rollout_logprobs[0] == pytest.approx(-np.log(49152), abs=0.01)
    assert usual[0].token_ids.tolist() != hot[0].token_ids.tolist()
