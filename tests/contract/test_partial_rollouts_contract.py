"""What every engine keeps to when texts are interrupted: by updates, deadlines, or whoever drains it; and its load."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from lwz_ray.records import Completion, VersionSpan
from tests.engine_case import ENDLESS, TIMEOUT_S, Case, set_engine, tokens


def check_whole(completion: Completion, prior: Completion) -> None:
    """Look whether a completion begins with its prior, and says of each token which version wrote it."""
    n, k = completion.num_tokens, prior.num_tokens
    assert n > k
    np.testing.assert_array_equal(completion.token_ids[:k], prior.token_ids)
    np.testing.assert_array_equal(completion.rollout_logprobs[:k], prior.rollout_logprobs)
    assert np.isfinite(completion.rollout_logprobs).all()
    assert completion.text.startswith(prior.text)
    edges = [0, *(s.stop for s in completion.version_spans)]
    assert [(s.start, s.stop) for s in completion.version_spans] == list(pairwise(edges)) and edges[-1] == n


async def interrupted(case: Case, num_samples: int, seed: int) -> list[Completion]:
    """Return beginnings of texts that do not end by themselves."""
    running = asyncio.create_task(case.generate(num_samples, seed))
    await asyncio.sleep(case.head_start_s)
    await case.worker.interrupt()
    priors = await running
    assert [p.finish_reason for p in priors] == ["abort"] * num_samples
    return priors


async def test_an_interrupted_text_is_gone_on_with(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    set_engine(case, monkeypatch, max_tokens=case.long_tokens, stop="")
    await case.update(ENDLESS)
    priors = await interrupted(case, 2, seed=4)
    assert all(0 < p.num_tokens < case.long_tokens for p in priors)
    old = case.version
    await case.update(ENDLESS + 1)
    for prior, whole in zip(priors, await case.generate(2, seed=9, priors=priors), strict=True):
        check_whole(whole, prior)
        assert (whole.finish_reason, whole.num_tokens) == ("length", case.long_tokens)
        spans = [(s.start, s.stop, s.policy_version) for s in whole.version_spans]
        assert spans == [(0, prior.num_tokens, old), (prior.num_tokens, case.long_tokens, old + 1)]


async def test_a_prior_without_tokens_is_a_fresh_start(case: Case) -> None:
    empty = Completion("", np.zeros(0, np.int32), np.zeros(0, np.float32), "abort", (VersionSpan(0, 0, 0),))
    assert tokens(await case.generate(2, priors=[empty, empty])) == tokens(await case.generate(2))


async def test_a_prior_at_the_limit_ends_by_length(case: Case) -> None:
    (text,) = await case.generate(1, seed=11, max_tokens=3)
    prior = replace(text, finish_reason="abort")
    (same,) = await case.generate(1, seed=12, max_tokens=3, priors=[prior])
    assert (same.finish_reason, same.text, tokens([same])) == ("length", text.text, tokens([text]))
    assert same.version_spans == text.version_spans


async def test_a_deadline_ends_a_text_where_it_is(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    set_engine(case, monkeypatch, max_tokens=case.long_tokens, stop="")
    await case.update(ENDLESS)
    cut = await case.generate(2, seed=4, remaining_s=case.head_start_s)
    assert [c.finish_reason for c in cut] == ["abort"] * 2
    assert all(0 < c.num_tokens < case.long_tokens for c in cut)
    assert {s.policy_version for c in cut for s in c.version_spans} == {case.version}
    (late,) = await case.generate(1, seed=5, remaining_s=0.0)
    assert late.finish_reason == "abort" and late.num_tokens < case.long_tokens


@pytest.mark.parametrize("mode", ["abort", "wait"])
async def test_an_update_that_keeps_nothing_in_flight(case: Case, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    set_engine(case, monkeypatch, max_tokens=case.long_tokens, stop="", update_mode=mode)
    await case.update(ENDLESS)
    old, paths = case.version, case.stage(ENDLESS + 1)
    running = asyncio.create_task(case.generate(2, seed=4))
    await asyncio.sleep(case.head_start_s)
    update = asyncio.create_task(case.worker.update(old + 1, paths, TIMEOUT_S))
    await asyncio.sleep(0)
    later = asyncio.create_task(case.generate(2, seed=4, max_tokens=5))
    first = await running
    await update
    assert {s.policy_version for c in first for s in c.version_spans} == {old}
    assert {c.finish_reason for c in first} == {"abort" if mode == "abort" else "length"}
    assert all((c.num_tokens < case.long_tokens) == (mode == "abort") for c in first)
    assert {s.policy_version for c in await later for s in c.version_spans} == {old + 1}


async def test_an_engine_says_what_it_does(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    set_engine(case, monkeypatch, max_tokens=case.long_tokens, stop="")
    await case.update(ENDLESS)
    before = await case.worker.heartbeat()
    running = asyncio.create_task(case.generate(3, seed=4))
    await asyncio.sleep(case.head_start_s)
    busy = await case.worker.heartbeat()
    texts = await running
    after = await case.worker.heartbeat()
    assert (before.num_running, busy.num_running, after.num_running) == (0, 3, 0)
    assert (before.num_waiting, busy.num_waiting, after.num_waiting) == (0, 0, 0)
    assert before.cache_usage < busy.cache_usage <= 1 and after.cache_usage == before.cache_usage
    written = sum(t.num_tokens for t in texts)
    assert before.num_generated_tokens < busy.num_generated_tokens < before.num_generated_tokens + written
    assert after.num_generated_tokens == before.num_generated_tokens + written
    assert (after.policy_version, after.num_preemptions) == (case.version, before.num_preemptions)
    assert after.cache_tokens >= 8 * 64
