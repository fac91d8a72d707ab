"""One learner rank on the tiny random model: it learns, skips what is not finite, warms up, and resumes exactly."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners.trainer import Trainer
from lwz_ray.packing import Microbatch, split_over_ranks
from lwz_ray.records import TrainSample
from tests.learner_parts import batch


def rows(samples: list[TrainSample], budget: int = 64) -> list[Microbatch]:
    return split_over_ranks(samples, budget, 1)[0]


def mean_logprob(trainer: Trainer, sample: TrainSample) -> float:
    """Return the mean logprob of a sample's trained tokens under the present weights."""
    (row,) = rows([sample])
    ids, positions, at, targets = map(torch.from_numpy, (row.token_ids, row.position_ids, row.rows, row.targets))
    with torch.no_grad():
        found, _ = trainer.backend.model(ids[None], positions[None], row.segments, at, targets, 0.8)
    return found.mean().item()


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.backend.stream_weights(torch.float32)}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


def test_a_step_moves_good_samples_up_and_bad_ones_down(make_trainer: Callable[..., Trainer]) -> None:
    # One length and no shared prompt, so that no sample's gradient drowns another's.
    trainer, samples = make_trainer(lr=3e-3), [batch((12,) * 9)[i] for i in (0, 3, 4, 7, 8)]
    before = [mean_logprob(trainer, s) for s in samples]
    first = trainer.train([rows(samples)])
    after = [mean_logprob(trainer, s) for s in samples]
    assert (first.optimizer_steps, first.skipped, first.num_trained_tokens) == (1, 0, 60)
    assert [new > old for old, new in zip(before, after, strict=True)] == [True, False, True, False, True]
    second = trainer.train([rows(samples)])
    assert second.metrics["train/loss"] < first.metrics["train/loss"]
    assert second.metrics["train/clip_fraction"] > first.metrics["train/clip_fraction"]


def test_the_split_into_microbatches_changes_nothing(make_trainer: Callable[..., Trainer]) -> None:
    samples, seen = batch(), []
    for budget in (40, 64, 400):
        trainer = make_trainer()
        metrics = trainer.train([rows(samples, budget)]).metrics
        seen.append([metrics[f"train/{k}"] for k in ("loss", "grad_norm", "mismatch", "mismatch_k3", "tokens")])
    assert [len(rows(samples, b)) for b in (40, 64, 400)] == [3, 2, 1]
    np.testing.assert_allclose(seen[1:], [seen[0]] * 2, rtol=1e-5)


def test_untrained_tokens_add_nothing_whatever_stands_there(make_trainer: Callable[..., Trainer]) -> None:
    plain = batch((5, 17, 2))
    cut_off = batch((5, 17, 2, 30))[3]
    masked = replace(
        cut_off,
        loss_mask=np.zeros_like(cut_off.loss_mask),
        rollout_logprobs=np.full_like(cut_off.rollout_logprobs, np.nan),
        advantages=np.full_like(cut_off.advantages, np.inf),
    )
    out = []
    for samples in (plain, [*plain, masked]):
        trainer = make_trainer()
        metrics = trainer.train([rows(samples, 400)]).metrics
        out.append(({k: metrics[f"train/{k}"] for k in ("loss", "grad_norm", "tokens")}, parameters(trainer)))
    assert out[1][0] == pytest.approx(out[0][0], rel=1e-6)
    for name in out[0][1]:
        torch.testing.assert_close(out[1][1][name], out[0][1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("poison", [{"advantage": float("nan")}, {"advantage": -float("inf")}])
def test_a_batch_that_is_not_finite_is_skipped_and_leaves_no_trace(
    make_trainer: Callable[..., Trainer], poison: dict[str, Any]
) -> None:
    trainer = make_trainer()
    trainer.train([rows(batch())])
    before = parameters(trainer)
    result = trainer.train([rows(batch((5, 9), **poison))])
    assert (result.optimizer_steps, result.skipped, result.num_trained_tokens) == (0, 1, 0)
    assert (result.metrics["train/skipped"], "train/loss" in result.metrics) == (1.0, False)
    assert_same(parameters(trainer), before)
    assert (trainer.optimizer_steps, trainer.skipped_steps) == (1, 1)
    # The next step is the one that would have come without it.
    trainer.train([rows(batch(seed=2))])
    clean = make_trainer()
    for seed in (1, 2):
        clean.train([rows(batch(seed=seed))])
    assert_same(parameters(trainer), parameters(clean))


def test_one_minibatch_of_two_may_be_skipped(make_trainer: Callable[..., Trainer]) -> None:
    bad = rows(batch((5, 9), advantage=float("nan")))
    result = make_trainer().train([bad, rows(batch())])
    assert (result.optimizer_steps, result.skipped, result.num_trained_tokens) == (1, 1, 65)
    assert np.isfinite(result.metrics["train/loss"])


def test_the_rate_warms_up_linearly_and_skipped_steps_do_not_count(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(lr=0.04, warmup_steps=4)
    bad = rows(batch((5, 9), advantage=float("nan")))
    rates = [trainer.train([bad if i == 2 else rows(batch((3, 4)))]).metrics["train/lr"] for i in range(7)]
    assert rates == pytest.approx([0.01, 0.02, 0.03, 0.03, 0.04, 0.04, 0.04])
    backend: Any = trainer.backend
    assert backend.optimizer.param_groups[0]["lr"] == pytest.approx(0.04)


def test_the_gradient_is_clipped_and_its_norm_reported_before(make_trainer: Callable[..., Trainer]) -> None:
    start, name, seen = parameters(make_trainer()), "model.embed_tokens.weight", []
    for bound in (1e9, 0.25):
        # With lr = eps far above any gradient AdamW's first step is the gradient itself.
        trainer = make_trainer(max_grad_norm=bound, lr=1e4, eps=1e4, betas=(0.0, 0.0))
        norm = trainer.train([rows(batch())]).metrics["train/grad_norm"]
        seen.append((norm, (parameters(trainer)[name] - start[name]).norm().item()))
    (norm, moved), (same_norm, moved_clipped) = seen
    assert norm == pytest.approx(same_norm, rel=1e-6)
    assert moved_clipped / moved == pytest.approx(0.25 / norm, rel=1e-3)


def test_saving_and_loading_continues_bit_for_bit(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(warmup_steps=5)
    trainer.train([rows(batch())])
    trainer.save(str(tmp_path))
    trainer.finish_save()
    noise = torch.rand(3)
    results = [trainer.train([rows(batch(seed=s))]).metrics for s in (2, 3)]
    wanted = parameters(trainer)

    resumed = make_trainer(warmup_steps=5)
    resumed.load(str(tmp_path))
    assert torch.equal(torch.rand(3), noise)
    again = [resumed.train([rows(batch(seed=s))]).metrics for s in (2, 3)]
    for one, other in zip(results, again, strict=True):
        assert {k: v for k, v in one.items() if k != "time/train_s"} == {
            k: v for k, v in other.items() if k != "time/train_s"
        }
    assert_same(parameters(resumed), wanted)
    assert resumed.optimizer_steps == 3
