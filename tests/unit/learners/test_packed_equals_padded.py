"""Loss and gradients over packed rows are those of a plain transformers forward over a padded batch, in float32."""

from dataclasses import replace
from pathlib import Path

import pytest

from lwz_ray.config_algorithm import PolicyLossName
from lwz_ray.packing import Microbatch
from lwz_ray.policy_losses import POLICY_LOSSES
from lwz_ray.records import TrainSample
from tests.algorithms import algorithm
from tests.learner_parts import batch
from tests.padded_reference import annotated, packed_against_padded
from tests.small_model import in_small_vocabulary, write_small_model

EVERYTHING = {
    "clip_low": 0.05, "clip_high": 0.08, "kl_coefficient": 0.1, "kl_estimator": "k3", "kl_in": "loss",
    "entropy_coefficient": 0.01, "old_logprobs": "recomputed", "correction": "sequence_truncated",
    "correction_high": 1.01,
}  # fmt: skip
"""Bounds so narrow that some tokens meet them and some do not."""


def samples() -> list[TrainSample]:
    """Return 7 samples of 1 to 41 trained tokens, pairs with one prompt; rows of 64 tokens hold several of them."""
    return in_small_vocabulary(batch((5, 17, 2, 30, 11, 1, 41)))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize(
    ("loss", "correction"),
    [(loss, correction) for loss in sorted(POLICY_LOSSES) for correction in ("sequence_truncated", "token_masked")],
)
def test_every_policy_loss(model_dir: Path, loss: PolicyLossName, correction: str) -> None:
    wanted = algorithm(**EVERYTHING | {"loss": loss, "correction": correction, "correction_low": 0.95})
    difference = packed_against_padded(model_dir, annotated(samples()), wanted)
    assert difference.num_rows == 3
    assert difference.loss < 1e-5 and difference.gradient < 1e-5


def test_the_first_step_of_a_batch_takes_its_own_forward_as_the_old_policy(model_dir: Path) -> None:
    wanted = algorithm(loss="clip", old_logprobs="recomputed", correction="token_truncated", kl_coefficient=0.0)
    difference = packed_against_padded(model_dir, samples(), wanted, activation_checkpointing=False)
    assert difference.loss < 1e-5 and difference.gradient < 1e-5


def test_a_row_without_borders_is_seen(model_dir: Path) -> None:
    # The same tokens as one causal sequence: what document boundaries are there to prevent.
    def as_one(row: Microbatch) -> Microbatch:
        return replace(row, segments=((0, 0, 0, row.num_tokens),))

    difference = packed_against_padded(model_dir, annotated(samples()), algorithm(**EVERYTHING), change=as_one)
    assert difference.gradient > 1e-3
