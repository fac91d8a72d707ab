"""vLLM through updates of each kind: whose logprobs the tokens have, held against plain forwards of both weights."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file

from actors.transcript import resumable
from actors.worker import RolloutWorker
from lwz_ray.records import Completion
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import pack_buckets
from tests.rollout_parts import collect, samples_of

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
PROMPT = list(range(1000, 1030))
NUM_TOKENS = 300
AGREE_NATS = 0.02
"""Mean over tokens of |rollout logprob - logprob of a plain float32 forward|: bfloat16 against float32."""


@dataclass
class Weights:
    """Two sets of weights for the engine, and a plain model of each."""

    worker: RolloutWorker
    staging: StagingFolder
    tensors: list[dict[str, torch.Tensor]]
    models: list[Any]

    def stage(self, number: int) -> list[str]:
        """Stage a set as the next version."""
        self.staging.clear()
        version = self.worker.engine.policy_version + 1
        return [self.staging.write(b) for b in pack_buckets(self.tensors[number].items(), version, 2**20)]

    async def update(self, number: int) -> None:
        await self.worker.update(self.worker.engine.policy_version + 1, self.stage(number), 60.0)

    def distance(self, number: int, completion: Completion, part: slice) -> float:
        """Return how far the logprobs of a part of a completion are from those of a plain forward, in nats a token."""
        ids = torch.tensor([[*PROMPT, *completion.token_ids.tolist()]])
        with torch.no_grad():
            logits = self.models[number](ids).logits[0, len(PROMPT) - 1 : -1]
        picked = torch.log_softmax(logits, dim=-1).gather(1, ids[0, len(PROMPT) :, None])[:, 0]
        return float(np.abs(picked.numpy() - completion.rollout_logprobs)[part].mean())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def weights(vllm_worker: RolloutWorker, tiny_model_dir: Path) -> AsyncIterator[Weights]:
    from transformers import AutoModelForCausalLM

    base = load_file(tiny_model_dir / "model.safetensors")
    base.pop("lm_head.weight", None)  # tied to the embedding, and not published apart
    noise = torch.Generator().manual_seed(1)
    other = {
        name: (t.float() + 2 * t.float().std(correction=0) * torch.randn(t.shape, generator=noise)).to(t.dtype)
        for name, t in base.items()
    }
    models = []
    for tensors in (base, other):
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
        model.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=False)
        models.append(model)
    out = Weights(vllm_worker, StagingFolder(("/dev/shm", "/tmp"), 2**25), [base, other], models)
    yield out
    await out.update(0)
    out.staging.remove()


def set_engine(weights: Weights, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    engine: Any = weights.worker.engine
    changed = replace(engine.settings, max_tokens=NUM_TOKENS, stop="", **changes)
    monkeypatch.setattr(engine, "settings", changed)


async def until_written(weights: Weights, num_sequences: int, num_tokens: int) -> None:
    """Wait until so many sequences are being written, each with a beginning."""
    engine: Any = weights.worker.engine
    end = time.monotonic() + 30.0
    written: list[int] = []
    while len(written) < num_sequences or min(written) < num_tokens:
        assert time.monotonic() < end, f"waited 30 s for {num_sequences} beginnings of {num_tokens} tokens: {written}"
        await asyncio.sleep(0.01)
        states = engine.llm.output_processor.request_states.values()
        written = [state.detokenizer.num_output_tokens() for state in states if state.detokenizer]


async def through_an_update(weights: Weights) -> list[Completion]:
    """Write four texts, with the other weights coming while they are written."""
    await weights.update(0)
    paths, version = weights.stage(1), weights.worker.engine.policy_version + 1
    running = asyncio.create_task(collect(weights.worker.stream(samples_of(PROMPT, 4, seed=3), 120.0)))
    await until_written(weights, 4, 20)
    await weights.worker.update(version, paths, 60.0)
    return await running


def seam_of(completion: Completion, version: int) -> int:
    """Return where the next version begins to write; the completion must have both, and nothing else."""
    first, second = completion.version_spans
    assert (first.policy_version, second.policy_version) == (version, version + 1)
    assert (first.start, first.stop, second.stop) == (0, second.start, completion.num_tokens)
    return first.stop


async def test_aborted_samples_are_taken_up_with_the_new_weights(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_engine(weights, monkeypatch, update_mode="abort")
    priors = await through_an_update(weights)
    new = weights.worker.engine.policy_version
    for prior in priors:
        assert prior.finish_reason == "abort" and 20 <= prior.num_tokens < NUM_TOKENS
        assert {s.policy_version for s in prior.version_spans} == {new - 1}
    request = samples_of(PROMPT, 4, seed=10, priors=priors)
    for prior, whole in zip(priors, await collect(weights.worker.stream(request, 120.0)), strict=True):
        seam = seam_of(whole, new - 1)
        assert 0 <= prior.num_tokens - seam <= 3  # half a character is written anew
        assert whole.token_ids[:seam].tolist() == prior.token_ids[:seam].tolist()
        assert whole.num_tokens == NUM_TOKENS and whole.finish_reason == "length"
        assert weights.distance(0, whole, slice(0, seam)) < AGREE_NATS
        assert weights.distance(1, whole, slice(seam, None)) < AGREE_NATS
        assert weights.distance(0, whole, slice(seam, None)) > 10 * AGREE_NATS


@pytest.mark.parametrize("clear_cache", [True, False])
async def test_kept_samples_go_on_with_a_cache_of_the_new_weights_or_of_the_old(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, clear_cache: bool
) -> None:
    set_engine(weights, monkeypatch, update_mode="keep", clear_cache=clear_cache)
    before = await weights.worker.heartbeat()
    for whole in await through_an_update(weights):
        seam = seam_of(whole, weights.worker.engine.policy_version - 1)
        assert weights.distance(0, whole, slice(0, seam)) < AGREE_NATS
        after_update = weights.distance(1, whole, slice(seam, None))
        assert (after_update < AGREE_NATS) if clear_cache else (after_update > 5 * AGREE_NATS)
    after = await weights.worker.heartbeat()
    engine: Any = weights.worker.engine
    assert after.num_preemptions == before.num_preemptions  # those of a cleared cache do not count,
    assert engine._counts.num_cleared == 0  # and were all reported


async def test_the_text_of_a_sample_is_that_of_its_tokens_wherever_it_is_cut(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prior cut after any number of tokens gives a whole whose text is the tokens' own."""
    set_engine(weights, monkeypatch)
    (text,) = await collect(weights.worker.stream(samples_of(PROMPT, 1, seed=3, max_tokens=40), 60.0))
    engine: Any = weights.worker.engine
    decode = engine._decoder(PROMPT)
    for cut in range(1, 40, 3):
        spans = tuple(replace(s, stop=cut) for s in text.version_spans)
        ids, logprobs = text.token_ids[:cut], text.rollout_logprobs[:cut]
        prior = Completion(decode(ids.tolist()), ids, logprobs, "abort", spans)
        request = samples_of(PROMPT, 1, seed=cut, max_tokens=60, priors=[prior])
        (whole,) = await collect(weights.worker.stream(request, 60.0))
        kept = resumable(prior, "", decode).num_tokens
        assert whole.token_ids[:kept].tolist() == ids[:kept].tolist()
        assert whole.text == decode(whole.token_ids.tolist()).removesuffix("\ufffd")
        assert whole.num_tokens == 60


async def test_a_stop_string_over_the_seam_is_found(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """These weights write the same token again and again; its text, six times, is the stop string."""
    engine: Any = weights.worker.engine
    letters = engine.llm.get_tokenizer().encode(" tea")[0]
    base = weights.tensors[0]
    tensors = {name: torch.zeros_like(t) if t.dim() > 1 else torch.ones_like(t) for name, t in base.items()}
    tensors["model.embed_tokens.weight"][letters, 0] = 10.0
    monkeypatch.setattr(weights, "tensors", [base, tensors])
    set_engine(weights, monkeypatch)
    await weights.update(1)
    (prior,) = await collect(weights.worker.stream(samples_of([letters], 1, seed=1, max_tokens=5), 60.0))
    assert prior.text == " tea" * 5
    monkeypatch.setattr(engine, "settings", replace(engine.settings, stop="tea tea tea tea tea tea"))
    request = samples_of([letters], 1, seed=1, priors=[replace(prior, finish_reason="abort")])
    (whole,) = await collect(weights.worker.stream(request, 60.0))
    assert (whole.text, whole.finish_reason, whole.num_tokens) == (" tea" * 6, "stop", 6)
