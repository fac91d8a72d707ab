"""Engine logprobs shifted on purpose, on a real model: the metrics measure the shift, and each correction reacts."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from learners.trainer import Trainer
from lwz_ray.packing import split_over_ranks
from lwz_ray.records import TrainSample
from tests.algorithms import algorithm
from tests.learner_parts import batch

LENGTHS = (6, 12, 4)
MakeTrainer = Callable[..., Trainer]


def by_the_learner(make_trainer: MakeTrainer) -> list[TrainSample]:
    """Return samples whose rollout logprobs are exactly the learner's own."""
    trainer, samples, out = make_trainer(), batch(LENGTHS), []
    for sample in samples:
        (facts,) = trainer.annotate(split_over_ranks([sample], 64, 1)[0])
        logprobs = np.zeros(sample.num_tokens, np.float32)
        logprobs[sample.loss_mask] = facts["old_logprobs"]
        out.append(replace(sample, rollout_logprobs=logprobs))
    return out


def shifted(samples: list[TrainSample], by: Callable[[int], np.ndarray]) -> list[TrainSample]:
    """Return samples for which log(learner / engine) of the j-th completion token is by(num_tokens)[j]."""
    out = []
    for sample in samples:
        logprobs = sample.rollout_logprobs.copy()
        logprobs[sample.loss_mask] -= by(sample.num_trained).astype(np.float32)
        out.append(replace(sample, rollout_logprobs=logprobs))
    return out


def step(make_trainer: MakeTrainer, correction: str, samples: list[TrainSample]) -> dict[str, float]:
    """Return the metrics of one step from the start weights, its gradient not clipped."""
    wanted = algorithm(correction=correction, correction_low=0.5, correction_high=2.0)
    trainer = make_trainer(algorithm=wanted, max_grad_norm=1e9)
    return trainer.train([split_over_ranks(samples, 64, 1)[0]]).metrics


@pytest.mark.parametrize(
    ("correction", "weight", "bounded"),
    [
        ("none", 1.0, 0.0),
        ("token_truncated", 2.0, 1.0),
        ("token_masked", 0.0, 1.0),
        ("sequence_truncated", 2.0, 1.0),
        ("sequence_masked", 0.0, 1.0),
        ("decoupled", 3.0, 0.0),
    ],
)
def test_an_engine_that_thinks_every_token_a_third_as_likely(
    make_trainer: MakeTrainer, correction: str, weight: float, bounded: float
) -> None:
    samples = by_the_learner(make_trainer)
    agreed = step(make_trainer, correction, samples)
    found = step(make_trainer, correction, shifted(samples, lambda n: np.full(n, math.log(3.0))))
    assert agreed["train/mismatch"] < 1e-6 and agreed["train/correction_bounded"] == 0.0
    assert found["train/mismatch"] == pytest.approx(math.log(3.0), abs=1e-5)
    assert found["train/mismatch_k3"] == pytest.approx(3.0 - 1.0 - math.log(3.0), abs=1e-5)
    assert found["train/correction_bounded"] == bounded
    # The same gradient, times the importance weight, whole or bounded.
    assert found["train/grad_norm"] == pytest.approx(weight * agreed["train/grad_norm"], rel=1e-4)
    assert found["train/loss"] == pytest.approx(weight * agreed["train/loss"], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("correction", "bounded"),
    [("token_truncated", 0.5), ("token_masked", 1.0), ("sequence_truncated", 0.0), ("sequence_masked", 0.0)],
)
def test_noise_without_a_drift_bounds_tokens_and_leaves_samples_alone(
    make_trainer: MakeTrainer, correction: str, bounded: float
) -> None:
    """Every other token is four times as likely to the engine, the rest a quarter as likely: on average as likely."""
    samples = shifted(by_the_learner(make_trainer), lambda n: np.where(np.arange(n) % 2, math.log(4.0), -math.log(4.0)))
    found = step(make_trainer, correction, samples)
    assert found["train/mismatch"] == pytest.approx(math.log(4.0), abs=1e-5)
    assert found["train/correction_bounded"] == bounded


def test_the_mismatch_is_reported_by_the_tokens_age(make_trainer: MakeTrainer) -> None:
    """The first token of each sample is five versions old, the next two are one, the rest are fresh."""

    samples = shifted(by_the_learner(make_trainer), lambda n: np.asarray([1.0, 0.25, 0.25] + [0.0] * (n - 3)))
    aged = []
    for sample in samples:
        ages = np.zeros(sample.num_tokens, np.int32)
        ages[sample.loss_mask] = [5, 1, 1] + [0] * (sample.num_trained - 3)
        aged.append(replace(sample, token_ages=ages))
    found = step(make_trainer, "token_truncated", aged)
    shares = [found.get(f"train/age_{age}_share", 0.0) for age in range(4)]
    assert shares == pytest.approx([13 / 22, 6 / 22, 0.0, 3 / 22])
    assert [found[f"train/age_{a}_mismatch"] for a in (0, 1, 3)] == pytest.approx([0.0, 0.25, 1.0], abs=1e-5)
    # exp(1) is above 2, exp(0.25) is not.
    assert [found[f"train/age_{a}_bounded"] for a in (0, 1, 3)] == [0.0, 0.0, 1.0]
    assert found["train/mismatch"] == pytest.approx((6 * 0.25 + 3 * 1.0) / 22, abs=1e-5)
