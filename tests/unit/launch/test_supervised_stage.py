"""A supervised run without Ray: documents, one learner rank, checkpoints; what resumes ends where it would have."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from launch.checkpoints import CheckpointStore, model_identity
from launch.compose import compose
from launch.held_out import HeldOut
from launch.learner_room import learner_settings
from launch.supervised_stage import run_supervised, steps_of
from learners.fsdp import FsdpBackend
from learners.group import LearnerGroup
from learners.trainer import Trainer
from lwz_ray.chat_pairs import load_chat_pairs
from lwz_ray.config import Config
from lwz_ray.corpus import budget, load_corpus
from lwz_ray.errors import UserError
from lwz_ray.supervised_loop import SupervisedLoop, SupervisedParts
from lwz_ray.token_budget import TokenBudget
from tests.learner_parts import meeting_address

WORDS = ["river", "stone", "light", "window", "garden", "old", "road", "house"]


class OneRank:
    """A rank in this process, called as a Ray handle is."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return getattr(self._trainer, name)(*arguments)

        return call


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path) -> Config:
    rng = random.Random(0)
    for name, count in (("books", 20), ("plans", 8)):
        rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(10, 60)))} for _ in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sources = f"{{books: {{path: {tmp_path}/books.jsonl, weight: 3}}, plans: {{path: {tmp_path}/plans.jsonl}}}}"
    return compose([
        "run=pretrain_demo", f"run.dir={tmp_path}", f"model.path={tiny_model_dir}", f"corpus.sources={sources}",
        "steps=4", "corpus.sequences_per_step=2", "model.max_length_tokens=64", "learners.microbatch_tokens=96",
        "corpus.held_out_documents=2", "learners.dtype=float32", "optimizer.lr=0.002", "optimizer.warmup_steps=1",
        "run.checkpoint_every_steps=2", "run.checkpoint_async=false", "learners.threads=1",
    ])  # fmt: skip


@pytest.fixture
def start(config: Config) -> Iterator[Any]:
    """Return a function that starts a fresh learner; a second call ends the first."""
    alive: list[Trainer] = []

    def begin() -> Trainer:
        while alive:
            alive.pop().close()
        settings = learner_settings(config, ("/dev/shm", "/tmp"), 0)
        alive.append(Trainer(settings, FsdpBackend(settings, 0, 1, meeting_address())))
        return alive[-1]

    yield begin
    while alive:
        alive.pop().close()


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.backend.stream_weights(torch.float32)}


async def test_a_resumed_run_ends_with_the_same_weights(config: Config, start: Any, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    lines: list[list[dict[str, Any]]] = []
    ends = []
    for stop_after in (4, 2):
        place = tmp_path / f"checkpoints_{stop_after}"
        lines.append([])
        for limit in (stop_after, 4) if stop_after < 4 else (4,):
            trainer, batches = start(), load_corpus(config, tokenizer)
            rank: Any = OneRank(trainer)
            group = LearnerGroup([rank], config.learners.microbatch_tokens, 60.0)
            store = CheckpointStore(place, model_identity(config.model.path), config.run, 60.0)
            store.attach(group)
            held_out = HeldOut(config, batches)

            async def numbers(held_out: HeldOut = held_out, group: LearnerGroup = group) -> dict[str, float]:
                return await held_out.numbers(group)

            parts = SupervisedParts(group, lambda m: lines[-1].append(dict(m)), store, numbers)
            loop = SupervisedLoop(config, TokenBudget(limit, None), batches, parts)
            if (newest := store.newest()) is not None:
                loop.restore((await store.load(newest))[0])
            await loop.run(asyncio.Event())
        ends.append((weights(trainer), held_out.measure(await held_out.score(group)), loop.progress, loop.counts))
    keys = ("step", "train/loss", "train/lr", "train/grad_norm", "source/plans_tokens", "train/total_tokens")
    whole, parts_of = ([tuple(m[k] for k in keys) for m in run] for run in lines)
    assert [row[0] for row in whole] == [1, 2, 3, 4]
    assert parts_of == whole
    assert {name for name, tensor in ends[0][0].items() if not torch.equal(tensor, ends[1][0][name])} == set()
    assert ends[0][1:] == ends[1][1:]
    assert whole[-1][1] < whole[0][1]


async def test_held_out_samples_are_asked_in_parts(config: Config, start: Any, monkeypatch: pytest.MonkeyPatch):
    batches = load_corpus(config, AutoTokenizer.from_pretrained(config.model.path))
    rank: Any = OneRank(start())
    group, held_out = LearnerGroup([rank], 96, 60.0), HeldOut(config, batches)
    asked = []
    annotate = group.annotate

    async def seen(samples: Any) -> Any:
        asked.append(sum(s.num_tokens for s in samples))
        return await annotate(samples)

    monkeypatch.setattr(group, "annotate", seen)
    whole = await held_out.score(group)
    monkeypatch.setattr("launch.held_out.ROWS_PER_CALL", 1)
    parts = await held_out.score(group)
    assert len(asked) > 2 and asked[0] == sum(asked[1:]) and max(asked[1:]) <= 96
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-5)
    found = held_out.measure(whole)
    numbers = await held_out.numbers(group)
    assert numbers["validation/loss"] == pytest.approx(found["loss"]["mean"])
    assert numbers["validation/perplexity"] == pytest.approx(found["perplexity"]["mean"])
    by_source = {row["source"]: row["mean"] for row in found["by_source"]}
    assert by_source == pytest.approx({n: numbers[f"validation/{n}_loss"] for n in ("books", "plans")})


def test_steps_are_counted_by_taking_them(config: Config, tmp_path: Path):
    rows = [{"prompt": "Write.", "answer": " ".join(WORDS * (1 + i % 3))} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    changes = {"path": f"{tmp_path}/pairs.jsonl", "samples_per_step": 3}
    columns = config.sft.columns.model_copy(update={"prompt": "prompt", "answer": "answer"})
    sft = config.sft.model_copy(update={**changes, "columns": columns})
    model = config.model.model_copy(update={"max_length_tokens": 512})
    learners = config.learners.model_copy(update={"microbatch_tokens": 512})
    wanted = config.model_copy(update={"sft": sft, "stage": "sft", "model": model, "learners": learners})
    batches = load_chat_pairs(wanted, AutoTokenizer.from_pretrained(config.model.path))
    first = batches.next()
    tokens = [sum(s.num_trained for s in step) for step in (first, batches.next(), batches.next())]
    batches.restore({"position": 0, "tokens": 0})
    for limit, steps in ((1, 1), (tokens[0], 1), (tokens[0] + 1, 2), (sum(tokens), 3), (10**9, 50), (None, 50)):
        assert steps_of(batches, TokenBudget(50, limit)) == steps
    # They stand where they stood.
    again = batches.next()
    assert [s.token_ids.tolist() for s in again] == [s.token_ids.tolist() for s in first]
    assert budget(config).planned_steps(128) == 4
    # One step reaches the budget, and the warm-up takes it: known when the pairs are tokenized, before a run begins.
    falling = wanted.model_copy(update={"sft": sft.model_copy(update={"lr_schedule": "cosine"})})
    words = r"1 steps with optimizer.warmup_steps=1 and sft.lr_schedule=cosine: the rate would never fall"
    with pytest.raises(UserError, match=words):
        run_supervised(falling, load_chat_pairs, TokenBudget(50, 1), None)
    assert not (tmp_path / wanted.run.name).exists()
