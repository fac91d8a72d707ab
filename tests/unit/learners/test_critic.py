"""The critic: a value before each trained token, PPO's clipped loss, and one behaviour on every backend and group."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from learners.critic_objective import CriticObjective
from learners.trainer import Trainer
from learners.value_model import ValueModel
from lwz_ray.packing import split_over_ranks
from lwz_ray.records import TrainSample
from tests.critic_parts import BUDGET, KEYS, WAYS, constant, critic, take_steps, train_each_way, valued
from tests.learner_parts import batch, meeting_address, run_ranks

CPU = torch.device("cpu")


@pytest.fixture
def make() -> Iterator[Callable[..., Trainer]]:
    """Return a function that starts a group of one rank; a second call ends the first's group."""
    alive: list[Trainer] = []

    def start(model: Path, **changes: Any) -> Trainer:
        while alive:
            alive.pop().close()
        alive.append(critic(model, **changes))
        return alive[-1]

    yield start
    while alive:
        alive.pop().close()


@pytest.fixture(scope="module")
def two_ranks(tiny_classifier_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two ranks saw, by the way that they worked together."""
    folder = tmp_path_factory.mktemp("critic")
    addresses = ",".join(meeting_address() for _ in WAYS)
    run_ranks(train_each_way, 2, (2, addresses, str(tiny_classifier_dir), str(folder)))
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(2)]


def rows(samples: list[TrainSample], budget: int = BUDGET) -> list[Any]:
    return split_over_ranks(samples, budget, 1)[0]


def test_a_value_is_the_head_on_the_state_before_the_token(tiny_classifier_dir: Path) -> None:
    model = ValueModel.load(str(tiny_classifier_dir), False, False).float()
    plain: Any = AutoModelForSequenceClassification.from_pretrained(tiny_classifier_dir, dtype=torch.float32)
    samples = batch()
    with torch.no_grad():
        alone = [plain.score(plain.model(torch.from_numpy(s.token_ids)[None].long())[0])[0, :, 0] for s in samples]
    found = {}
    for row in rows(samples):
        values = CriticObjective(0.2).facts(model, row, CPU)["values"]
        assert values.dtype == torch.float32 and not values.requires_grad
        for number, index in enumerate(row.sample_index.tolist()):
            found[index] = values[row.sample_of == number]
    assert sorted(found) == [0, 1, 2, 3, 4]
    for index, sample in enumerate(samples):
        wanted = alone[index][np.flatnonzero(sample.loss_mask) - 1]
        assert wanted.std().item() > 0.01
        torch.testing.assert_close(found[index], wanted, rtol=0, atol=1e-5)


def test_a_new_head_values_everything_0_and_a_given_one_is_kept(tiny_model_dir: Path, tiny_classifier_dir: Path):
    new, given = (ValueModel.load(str(d), False, False) for d in (tiny_model_dir, tiny_classifier_dir))
    assert torch.equal(new.lm.score.weight, torch.zeros(1, 64, dtype=new.lm.score.weight.dtype))
    kept: Any = AutoModelForSequenceClassification.from_pretrained(tiny_classifier_dir, dtype="auto")
    assert torch.equal(given.lm.score.weight, kept.score.weight)
    assert given.lm.score.weight.abs().max().item() > 0


def test_loss_and_metrics_in_numbers(make: Callable[..., Trainer], tiny_model_dir: Path) -> None:
    """All values are 0: with old value -0.5 and clip 0.2 the loss sees -0.3, with old value 0 it sees the value."""
    first, second = batch((4, 4))
    samples = [constant(first, 1.0, value=-0.5), constant(second, 3.0)]
    result = make(tiny_model_dir).train([rows(samples)])
    wanted = {
        "train/loss": 2.6725,  # (1.3 ** 2 / 2 + 3 ** 2 / 2) / 2
        "train/clip_fraction": 0.5,
        "train/value": 0.0,
        "train/return": 2.0,
        "train/explained_variance": 0.0,
        "train/tokens": 8.0,
    }
    assert {k: result.metrics[k] for k in wanted} == pytest.approx(wanted, abs=1e-6)
    assert (result.optimizer_steps, result.num_trained_tokens) == (1, 8)
    free = make(tiny_model_dir, value_clip=None).train([rows(samples)])
    assert free.metrics["train/loss"] == pytest.approx(2.5)  # (1 / 2 + 9 / 2) / 2
    assert free.metrics["train/clip_fraction"] == 0.0


def test_equal_returns_leave_no_variance_to_explain() -> None:
    totals = {"loss": 0.5, "tokens": 3.0, "clipped": 0.0, "value": 0.0, "return": 0.3, "return_square": 0.03}
    metrics = CriticObjective(None).metrics({**totals, "residual_square": 0.03}, 1)
    assert "train/explained_variance" not in metrics
    assert metrics["train/return"] == pytest.approx(0.1)
    spread = CriticObjective(None).metrics({**totals, "return_square": 0.06, "residual_square": 0.045}, 1)
    # var(returns) = 0.02 - 0.01; var(returns - values) = 0.015 - 0.01
    assert spread["train/explained_variance"] == pytest.approx(0.5)


def test_samples_without_values_or_returns_are_refused(make: Callable[..., Trainer], tiny_model_dir: Path) -> None:
    learner = make(tiny_model_dir)
    with pytest.raises(ValueError, match="carry no values"):
        learner.train([rows([replace(s, facts=None) for s in valued()])])
    with pytest.raises(ValueError, match="carry no returns"):
        learner.train([rows([replace(s, returns=None) for s in valued()])])


def test_values_learn_the_returns(make: Callable[..., Trainer], tiny_model_dir: Path) -> None:
    """Each prompt has a return of its own, which the critic can only know from the text."""
    learner = make(tiny_model_dir, value_clip=None, lr=3e-3)
    samples = [constant(s, returned) for s, returned in zip(batch((6, 6, 6, 6)), (1.0, 1.0, -2.0, -2.0), strict=True)]
    seen = [learner.train([rows(samples)]).metrics for _ in range(30)]
    assert seen[0]["train/loss"] == pytest.approx(1.25)  # mean of 1 / 2 and 4 / 2, from values of 0
    assert seen[0]["train/explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert seen[-1]["train/loss"] < 0.05
    assert seen[-1]["train/explained_variance"] > 0.95
    assert seen[-1]["train/value"] == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_are_one_critic(
    make: Callable[..., Trainer], two_ranks: list[dict[str, Any]], tiny_classifier_dir: Path, way: str
) -> None:
    alone = take_steps(make(tiny_classifier_dir))
    assert alone["results"][0].metrics["train/grad_norm"] > 1.0
    assert 0.1 < alone["results"][0].metrics["train/clip_fraction"] < 0.9
    for rank in two_ranks:
        for step in range(2):
            found, wanted = rank[way]["results"][step], alone["results"][step]
            metrics = [[r.metrics[f"train/{k}"] for k in KEYS] for r in (found, wanted)]
            np.testing.assert_allclose(*metrics, rtol=1e-5, atol=1e-7)
            assert (found.optimizer_steps, found.skipped, found.num_trained_tokens) == (1, 0, (65, 9)[step])
        assert list(rank[way]["parameters"]) == list(alone["parameters"])
        for name, tensor in rank[way]["parameters"].items():
            # AdamW's first steps are the gradient's sign where it is far from 0: a tiny gradient may differ more.
            torch.testing.assert_close(tensor, alone["parameters"][name], rtol=0, atol=2e-3)
