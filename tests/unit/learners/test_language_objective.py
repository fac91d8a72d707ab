"""The language-model objective on a small model: packed rows against transformers' own loss, by source; it learns."""

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.fsdp import FsdpBackend
from learners.group import LearnerGroup
from learners.trainer import Trainer
from lwz_ray.packing import Microbatch, split_over_ranks
from lwz_ray.perplexity import nll_of, scores_of
from lwz_ray.records import TrainSample
from tests.learner_parts import alone_and_in_two, meeting_address, settings
from tests.small_model import VOCABULARY, write_small_model

SOURCES = ("books", "plans", "none")


def language_trainer(
    model: Path | str, rank: int = 0, world_size: int = 1, address: str | None = None, **changes: Any
) -> Trainer:
    """Return one rank; sampling's temperature, which stage=rl trains at, must not matter here."""
    plain = {"objective": "language_model", "algorithm": None, "sources": SOURCES, "temperature": 0.5}
    wanted = settings(Path(model), **plain | changes)
    return Trainer(wanted, FsdpBackend(wanted, rank, world_size, address or meeting_address()))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small_model(tmp_path_factory.mktemp("small"))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def make(model_dir: Path) -> Iterator[Callable[..., Trainer]]:
    """Return a function that starts a group of one rank; a second call ends the first's group."""
    alive: list[Trainer] = []

    def start(model: Path = model_dir, **changes: Any) -> Trainer:
        while alive:
            alive.pop().close()
        alive.append(language_trainer(model, **changes))
        return alive[-1]

    yield start
    while alive:
        alive.pop().close()


def samples(lengths: tuple[int, ...] = (9, 24, 2, 31, 14), seed: int = 1) -> list[TrainSample]:
    """Return documents of these lengths of the first two sources in turn; the last one is a chat of two answers.

    All but the chat begin with the same token, as documents do where a tokenizer puts one there.
    """
    rng = np.random.default_rng(seed)
    out = []
    for i, length in enumerate(lengths):
        ids = rng.integers(2, VOCABULARY, length).astype(np.int32)
        mask = np.arange(length) >= 1
        first = 1
        ids[0] = 1
        if i == 4:
            mask = np.isin(np.arange(length), (5, 6, 7, 11, 12, 13))
            first = 5
        nothing = np.zeros(length, np.float32)
        out.append(TrainSample(ids, first, mask, nothing, nothing, 0.0, source=i % 2))
    total = sum(s.num_trained for s in out)
    return [replace(s, token_weight=1.0 / total) for s in out]


def plain_nll(model: Any, items: list[TrainSample]) -> list[torch.Tensor]:
    """Return each sample's summed nll by transformers alone, the sample in a forward of its own."""
    out = []
    for item in items:
        ids = torch.from_numpy(item.token_ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(item.loss_mask)[None], ids, -100)
        out.append(model(input_ids=ids, labels=labels).loss * item.num_trained)
    return out


def plain_model(learner: Trainer) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(learner.settings.model_path, dtype=torch.float32)
    model.load_state_dict(parameters(learner), strict=False)
    return model


def parameters(learner: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.backend.stream_weights(torch.float32)}


def rows(items: list[TrainSample], budget: int = 48) -> list[Microbatch]:
    return split_over_ranks(items, budget, 1)[0]


@pytest.mark.parametrize(("budget", "checkpointing"), [(32, False), (400, True)])
def test_loss_by_source_and_gradient_are_those_of_the_plain_computation(
    make: Callable[..., Trainer], budget: int, checkpointing: bool
) -> None:
    # With lr = eps far above any gradient AdamW's first step is the gradient itself.
    learner = make(max_grad_norm=1e9, lr=1e4, eps=1e4, betas=(0.0, 0.0), activation_checkpointing=checkpointing)
    items, model, start = samples(), plain_model(learner), parameters(learner)
    nll = plain_nll(model, items)
    counts = [8, 23, 1, 30, 6]
    loss = torch.stack(nll).sum() / 68
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()

    found = learner.train([rows(items, budget)])
    told = {k: v for k, v in found.metrics.items() if not k.startswith("time/")}
    wanted = {
        "train/loss": loss.item(),
        "train/grad_norm": norm,
        "train/tokens": 68.0,
        "train/lr": 1e4,
        "train/skipped": 0.0,
        "source/books_loss": (nll[0] + nll[2] + nll[4]).item() / 15,
        "source/books_tokens": 15.0,
        "source/plans_loss": (nll[1] + nll[3]).item() / 53,
        "source/plans_tokens": 53.0,
        "source/none_tokens": 0.0,
    }
    assert told == pytest.approx(wanted, rel=1e-4)
    assert abs(wanted["source/books_loss"] - wanted["source/plans_loss"]) > 1e-3
    assert [s.num_trained for s in items] == counts and found.num_trained_tokens == 68
    moved = parameters(learner)
    for name, parameter in model.named_parameters():
        if name in start:  # the output matrix is the embedding
            torch.testing.assert_close(start[name] - moved[name], parameter.grad, rtol=1e-3, atol=1e-4 * norm)


def test_held_out_scores_are_those_of_each_text_alone(make: Callable[..., Trainer]) -> None:
    learner, items = make(), samples()
    rank: Any = InProcess(learner)
    with torch.no_grad():
        wanted = [float(x) for x in plain_nll(plain_model(learner), items)]
    facts = asyncio.run(LearnerGroup([rank], 48, 60.0).annotate(items))
    found = scores_of(items, range(len(items)), nll_of(items, facts))
    assert found.nll.tolist() == pytest.approx(wanted, rel=1e-5)
    assert (found.tokens.tolist(), found.source_of.tolist()) == ([8, 23, 1, 30, 6], [0, 1, 0, 1, 0])


class InProcess:
    """A rank in this process, called as a Ray handle is."""

    def __init__(self, learner: Trainer) -> None:
        self._learner = learner

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return getattr(self._learner, name)(*arguments)

        return call


def test_it_learns_by_heart_with_a_falling_rate(make: Callable[..., Trainer], tmp_path: Path) -> None:
    learner, items = make(lr=2e-2, lr_schedule="cosine", total_steps=30, warmup_steps=2), samples()
    results = [learner.train([rows(items)]).metrics for _ in range(32)]
    assert results[0]["train/loss"] == pytest.approx(math.log(VOCABULARY), rel=0.05)
    assert results[-1]["train/loss"] < 1.0
    # Up in 2 steps, then half a cosine over 28; the 30th is the last that was foreseen, and later ones keep its rate.
    rates = [results[i]["train/lr"] / 2e-2 for i in (0, 1, 2, 9, 16, 23, 29, 30, 31)]
    last = 0.5 * (1 + math.cos(math.pi * 27 / 28))
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, last, last, last], rel=1e-5)
    assert last == pytest.approx(0.00314, abs=1e-5)
    learner.export(str(tmp_path))
    exported: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert float(torch.stack(plain_nll(exported, items)).sum()) / 68 < 1.0


def train_two_steps(rank: int, world_size: int, address: str, model: str, folder: str) -> None:
    """Take two steps on one rank of a group, score and save; write what was seen to `folder`/rank_N.pt.

    The second batch is one text: of two ranks one has nothing to train.
    """
    learner = language_trainer(model, rank, world_size, address)
    results = []
    for items in (samples(), samples((7,), seed=2)):
        results.append(learner.train([split_over_ranks(items, 48, world_size)[rank]]).metrics)
    plan = split_over_ranks(samples(), 48, world_size)[rank]
    nll = -sum(float(found["old_logprobs"].sum()) for found in learner.annotate(plan))
    torch.save({"results": results, "nll": nll}, Path(folder, f"rank_{rank}.pt"))
    learner.close()


def test_two_ranks_are_one(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    seen = alone_and_in_two(train_two_steps, model_dir, tmp_path_factory)
    (alone,), ranks = seen["of_1"], seen["of_2"]
    for step in (0, 1):
        wanted = {k: v for k, v in alone["results"][step].items() if not k.startswith("time/")}
        for rank in ranks:
            assert {k: rank["results"][step][k] for k in wanted} == pytest.approx(wanted, rel=1e-4)
    assert [alone["results"][1][f"source/{n}_tokens"] for n in SOURCES] == [6.0, 0.0, 0.0]
    assert "source/plans_loss" not in alone["results"][1]
    assert sum(rank["nll"] for rank in ranks) == pytest.approx(alone["nll"], rel=1e-4)
