"""What every engine behind a rollout worker keeps to: sampling, stopping, versions, updates in flight, damage."""

import asyncio
import contextlib
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from actors.engine import DirtyEngineError
from actors.tiny_engine import TinyEngine
from lwz_ray.records import Completion
from tests.engine_case import ENDLESS, TIMEOUT_S, Case, set_engine, tokens
from tests.rollout_parts import samples_of


async def test_the_seed_decides(case: Case) -> None:
    first, again, other = [await case.generate(seed=s) for s in (11, 11, 12)]
    assert tokens(first) == tokens(again)
    assert [c.text for c in first] == [c.text for c in again]
    assert tokens(first) != tokens(other)
    assert len({tuple(t) for t in tokens(first)}) == 4  # samples of one group differ


async def test_logprobs_are_those_of_the_tokens(case: Case) -> None:
    for completion in await case.generate(num_samples=8):
        n = completion.num_tokens
        assert 0 < n <= 64
        assert (completion.token_ids.dtype, completion.rollout_logprobs.dtype) == (np.int32, np.float32)
        assert completion.rollout_logprobs.shape == (n,)
        assert np.isfinite(completion.rollout_logprobs).all() and (completion.rollout_logprobs <= 0).all()
        spans = completion.version_spans
        assert [(s.start, s.stop, s.policy_version) for s in spans] == [(0, n, case.version)]


async def test_a_text_ends_by_length_at_the_limit(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await case.generate(num_samples=8)
    set_engine(case, monkeypatch, max_tokens=3)
    cut = await case.generate(num_samples=8)
    assert tokens(cut) == [t[:3] for t in tokens(whole)]
    assert [c.finish_reason for c in cut] == ["length" if c.num_tokens > 3 else "stop" for c in whole]
    assert "length" in {c.finish_reason for c in cut}


async def test_the_stop_tag_is_kept(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = "</answer>"
    if not isinstance(case.worker.engine, TinyEngine):
        # A random model does not write the tag: stop at letters that it is known to write with this seed.
        (free,) = await case.generate(num_samples=1, seed=7)
        words = re.findall(r"[a-z]{5}", free.text[10:-20])
        stop = words[0]
        set_engine(case, monkeypatch, stop=stop)
    completions = await case.generate(num_samples=1 if stop != "</answer>" else 8, seed=7)
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert stopped
    for completion in stopped:
        assert completion.text.endswith(stop) and completion.text.count(stop) == 1
        assert completion.num_tokens < 64 and completion.num_tokens == len(completion.rollout_logprobs)


async def test_a_text_that_is_read_along_is_the_same_text(case: Case) -> None:
    (whole,) = await case.generate(num_samples=1, seed=9)
    request = replace(samples_of(case.prompt, 1, 9), piece_tokens=1)
    async with contextlib.aclosing(case.worker.pieces(request, TIMEOUT_S)) as stream:
        told = [piece async for piece in stream]
    pieces, completion = [piece for piece in told if isinstance(piece, str)], told[-1]
    assert isinstance(completion, Completion) and len(told) == len(pieces) + 1
    assert tokens([completion]) == tokens([whole])
    assert "".join(pieces) == completion.text == whole.text
    assert len(pieces) > 2
    async with contextlib.aclosing(case.worker.pieces(request, TIMEOUT_S)) as stream:
        assert await anext(stream) == pieces[0]
    assert (await case.worker.heartbeat()).num_running == 0


async def test_an_update_changes_what_is_sampled_and_its_version(case: Case) -> None:
    old, version = await case.generate(seed=3), case.version
    await case.update(1)
    new = await case.generate(seed=3)
    assert case.version == version + 1
    assert {s.policy_version for c in old for s in c.version_spans} == {version}
    assert {s.policy_version for c in new for s in c.version_spans} == {version + 1}
    assert tokens(old) != tokens(new)
    await case.update(0)
    assert tokens(await case.generate(seed=3)) == tokens(old)


async def test_an_update_in_the_middle_of_a_text(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    set_engine(case, monkeypatch, max_tokens=case.long_tokens)
    await case.update(ENDLESS)
    old, paths = case.version, case.stage(ENDLESS + 1)
    running = asyncio.create_task(case.generate(num_samples=2, seed=4))
    await asyncio.sleep(case.head_start_s)
    await case.worker.update(old + 1, paths, TIMEOUT_S)
    assert not running.done()
    completions = await running
    both = 0
    for completion in completions:
        spans = completion.version_spans
        edges = [0, *(s.stop for s in spans)]
        assert [(s.start, s.stop) for s in spans] == list(pairwise(edges))
        assert edges[-1] == completion.num_tokens
        versions = [s.policy_version for s in spans]
        assert versions in ([old], [old, old + 1], [old + 1])
        both += versions == [old, old + 1]
    assert both >= 1


async def test_requests_wait_while_an_update_runs(case: Case) -> None:
    version = case.version + 1
    update = asyncio.create_task(case.worker.update(version, case.stage(3), TIMEOUT_S))
    await asyncio.sleep(0)
    completions = await case.generate(seed=5)
    assert update.done()
    assert {s.policy_version for c in completions for s in c.version_spans} == {version}


async def test_damage_makes_an_engine_dirty_until_a_full_update(case: Case) -> None:
    await case.update(1)
    wanted = tokens(await case.generate(seed=6))
    await case.update(2)
    paths = case.stage(1)
    payload = Path(paths[-1]).with_suffix(".bin")
    raw = bytearray(payload.read_bytes())
    raw[len(raw) // 2] ^= 1
    payload.write_bytes(raw)
    running = asyncio.create_task(case.generate(seed=8))
    await asyncio.sleep(0)
    before = case.version
    with pytest.raises(DirtyEngineError, match=f"update to policy version {before + 1} failed"):
        await case.worker.update(before + 1, paths, TIMEOUT_S)
    assert case.version == before
    with pytest.raises(DirtyEngineError, match=f"update to policy version {before + 1} failed"):
        await case.generate(timeout_s=0.1)
    await case.update(1)
    assert tokens(await case.generate(seed=6)) == wanted
    # What was in flight came back as far as it was, to be taken up by another engine.
    assert [c.finish_reason for c in await running] == ["abort"] * 4


async def test_an_update_without_weights_is_refused(case: Case) -> None:
    with pytest.raises(DirtyEngineError):
        await case.worker.update(case.version + 1, None, TIMEOUT_S)
    await case.update(0)
    assert len(await case.generate(num_samples=1)) == 1
