"""What a rank says of tokens before a step: its own logprobs, the reference's, and how both come back by sample."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners.group import LearnerGroup, scatter_facts
from learners.trainer import Trainer
from lwz_ray.errors import UserError
from lwz_ray.packing import split_over_ranks
from lwz_ray.records import StepResult, TokenFacts, TrainSample
from tests.algorithms import algorithm
from tests.learner_parts import batch

WITH_REFERENCE = algorithm(kl_coefficient=0.1, old_logprobs="recomputed")
REFRESHED = algorithm(kl_coefficient=0.1, reference_refresh_steps=2)


class Rank:
    """Calls a trainer of this process as a Ray actor is called."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any) -> Any:
            return getattr(self._trainer, name)(*arguments)

        return call


def group_of(trainers: Sequence[Any], budget: int = 64, **options: Any) -> LearnerGroup:
    ranks: list[Any] = [Rank(t) for t in trainers]
    return LearnerGroup(ranks, budget, 60.0, **options)


def annotate(trainer: Trainer, samples: list[TrainSample], budget: int = 64) -> list[TokenFacts]:
    return asyncio.run(group_of([trainer], budget).annotate(samples))


def column(facts: list[TokenFacts], name: str) -> np.ndarray:
    return np.concatenate([getattr(f, name) for f in facts])


def test_the_reference_stays_the_start_and_a_refresh_makes_it_the_present(make_trainer: Callable[..., Trainer]) -> None:
    trainer, samples = make_trainer(algorithm=WITH_REFERENCE), batch()
    start = annotate(trainer, samples)
    np.testing.assert_array_equal(column(start, "ref_logprobs"), column(start, "old_logprobs"))
    trainer.train([split_over_ranks(samples, 64, 1)[0]])
    later = annotate(trainer, samples)
    np.testing.assert_array_equal(column(later, "ref_logprobs"), column(start, "ref_logprobs"))
    moved = np.abs(column(later, "old_logprobs") - column(start, "old_logprobs"))
    assert moved[np.concatenate([s.loss_mask for s in samples])].min() > 1e-3
    trainer.refresh_reference()
    fresh = annotate(trainer, samples)
    for name in ("old_logprobs", "ref_logprobs"):
        np.testing.assert_array_equal(column(fresh, name), column(later, "old_logprobs"))


def test_facts_come_back_to_their_tokens_whatever_the_packing(make_trainer: Callable[..., Trainer]) -> None:
    trainer, samples = make_trainer(), batch()
    whole, split = annotate(trainer, samples, 400), annotate(trainer, samples, 40)
    alone = [annotate(trainer, [s])[0] for s in samples]
    for sample, one, other, third in zip(samples, whole, split, alone, strict=True):
        assert one.old_logprobs is not None and one.ref_logprobs is None and one.values is None
        assert (one.old_logprobs == 0).tolist() == (~sample.loss_mask).tolist()
        for found in (other, third):
            assert found.old_logprobs is not None
            np.testing.assert_allclose(found.old_logprobs, one.old_logprobs, atol=1e-5)


def test_old_logprobs_are_bit_for_bit_those_of_the_first_step(make_trainer: Callable[..., Trainer]) -> None:
    trainer, samples = make_trainer(algorithm=algorithm(minibatches=2)), batch()
    facts = annotate(trainer, samples)
    known = [replace(s, facts=f) for s, f in zip(samples, facts, strict=True)]
    rows = split_over_ranks(known, 64, 1)[0]
    first, second = (trainer.train([rows]).metrics["train/ratio_shift"] for _ in range(2))
    assert first == 0.0 and second > 1e-3


def test_a_refreshed_reference_survives_a_resume(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    samples = batch()
    rows = split_over_ranks(samples, 64, 1)[0]
    trainer = make_trainer(algorithm=REFRESHED)
    trainer.train([rows])
    trainer.refresh_reference()
    trainer.train([rows])
    trainer.save(str(tmp_path))
    trainer.finish_save()
    wanted = annotate(trainer, samples)
    assert not np.array_equal(column(wanted, "ref_logprobs"), column(wanted, "old_logprobs"))
    resumed = make_trainer(algorithm=REFRESHED)
    resumed.load(str(tmp_path))
    found = annotate(resumed, samples)
    for name in ("old_logprobs", "ref_logprobs"):
        np.testing.assert_array_equal(column(found, name), column(wanted, name))
    torch.save([], tmp_path / "reference_1.pt")
    with pytest.raises(UserError, match=r"holds a refreshed reference of 2 ranks.*continue with learners.ranks=2"):
        resumed.load(str(tmp_path))
    for part in tmp_path.glob("reference_*.pt"):
        part.unlink()
    with pytest.raises(UserError, match=r"holds no reference; continue with algorithm.reference_refresh_steps=0"):
        resumed.load(str(tmp_path))


def test_a_reference_that_stays_the_start_is_in_no_file(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer, samples = make_trainer(algorithm=WITH_REFERENCE), batch()
    start = column(annotate(trainer, samples), "ref_logprobs")
    trainer.train([split_over_ranks(samples, 64, 1)[0]])
    trainer.save(str(tmp_path))
    trainer.finish_save()
    assert list(tmp_path.glob("reference_*")) == []
    resumed = make_trainer(algorithm=WITH_REFERENCE)
    resumed.load(str(tmp_path))
    np.testing.assert_array_equal(column(annotate(resumed, samples), "ref_logprobs"), start)


def test_scattered_facts_keep_samples_apart() -> None:
    samples = batch((2, 3, 1))
    rows = [row for rank in split_over_ranks(samples, 8, 2) for row in rank]
    assert len(rows) > 1
    said = [(row, {"values": row.targets.astype(np.float32)}) for row in rows]
    for sample, fact in zip(samples, scatter_facts(samples, said), strict=True):
        np.testing.assert_array_equal(fact.values, np.where(sample.loss_mask, sample.token_ids, 0).astype(np.float32))


class Notes:
    """Keeps what a rank is given; its facts are the tokens themselves."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def annotate(self, microbatches: list[Any]) -> list[dict[str, np.ndarray]]:
        self.given.append(microbatches)
        return [{"values": row.targets.astype(np.float32)} for row in microbatches]

    def train(self, minibatches: list[list[Any]]) -> StepResult:
        self.given.append(minibatches)
        return StepResult({}, len(minibatches), 0, 0)


def test_neighbours_in_rank_share_their_rows() -> None:
    ranks, samples = [Notes() for _ in range(4)], batch()
    group = group_of(ranks, sequence_parallel=2)
    facts = asyncio.run(group.annotate(samples))
    result = asyncio.run(group.train([samples, samples[:2]]))
    for number in range(2):
        assert ranks[0].given[number] is not ranks[2].given[number]
        for a, b in ((0, 1), (2, 3)):
            one, other = ranks[a].given[number], ranks[b].given[number]
            assert [id(x) for x in np.ravel(np.asarray(one, dtype=object))] == [
                id(x) for x in np.ravel(np.asarray(other, dtype=object))
            ]
    assert [f.values.tolist() for f in facts if f.values is not None] == [
        np.where(s.loss_mask, s.token_ids, 0).tolist() for s in samples
    ]
    # 1 row a rank for each minibatch, and 2 ranks of rows.
    assert result.metrics["train/microbatches"] == 4.0
    with pytest.raises(ValueError, match="4 ranks are no multiple of sequence_parallel=3"):
        group_of(ranks, sequence_parallel=3)
