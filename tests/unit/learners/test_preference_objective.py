"""The preference objective on the tiny model: packed is plain, two ranks are one, it learns, the export scores."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from learners.group import LearnerGroup
from learners.reward_model import RewardModel
from learners.trainer import Trainer
from lwz_ray.errors import UserError
from lwz_ray.preferences import EncodedPair, split_pairs_over_ranks
from tests.learner_parts import alone_and_in_two
from tests.preference_parts import pairs, rows, train_score_export, trainer

NAMES = ["loss", "grad_norm", "pair_accuracy", "score_gap", "score_mean", "pairs", "tokens", "lr"]


class InProcess:
    """A rank in this process, called as a Ray handle is."""

    def __init__(self, learner: Trainer) -> None:
        self._learner = learner

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return getattr(self._learner, name)(*arguments)

        return call


@pytest.fixture
def make(tiny_model_dir: Path) -> Iterator[Callable[..., Trainer]]:
    """Return a function that starts a group of one rank; a second call ends the first's group."""
    alive: list[Trainer] = []

    def start(model: Path = tiny_model_dir, **changes: Any) -> Trainer:
        while alive:
            alive.pop().close()
        alive.append(trainer(model, **changes))
        return alive[-1]

    yield start
    while alive:
        alive.pop().close()


@pytest.fixture(scope="module")
def seen(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what one rank alone and each of two ranks saw, and the export of the two."""
    return alone_and_in_two(train_score_export, tiny_model_dir, tmp_path_factory)


def score(learner: Trainer, items: list[EncodedPair], budget: int = 40) -> torch.Tensor:
    """Return [num_pairs, 2] through the learner group."""
    rank: Any = InProcess(learner)
    return torch.tensor(asyncio.run(LearnerGroup([rank], budget, 60.0, split_pairs_over_ranks).score(items)))


def plain_scores(model: Any, items: list[EncodedPair]) -> torch.Tensor:
    """Return [num_pairs, 2]: every text of every pair in a forward of its own, by transformers alone."""
    model.config.pad_token_id = None  # a random text may end with that id, and the scalar is read at the last token
    out = []
    for item in items:
        for text in (item.chosen, item.rejected):
            ids = torch.from_numpy(np.concatenate([item.head, text]).astype(np.int64))[None]
            out.append(model(ids).logits[0, 0])
    return torch.stack(out).view(-1, 2)


def plain_model(learner: Trainer) -> Any:
    """Return transformers' own classifier with the learner's weights in float32."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        learner.settings.model_path, num_labels=1, dtype=torch.float32
    )
    model.load_state_dict(parameters(learner))
    return model


def parameters(learner: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.backend.stream_weights(torch.float32)}


def test_packed_scores_are_those_of_each_text_alone(make: Callable[..., Trainer]) -> None:
    learner, items = make(), pairs()
    with torch.no_grad():
        wanted = plain_scores(plain_model(learner), items)
    assert wanted.std().item() > 0.1
    assert [len(rows(items, b)) for b in (24, 400)] == [5, 1]
    for budget in (24, 400):
        torch.testing.assert_close(score(learner, items, budget), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("budget", "checkpointing"), [(24, False), (400, True)])
def test_loss_metrics_and_gradient_are_those_of_the_plain_computation(
    make: Callable[..., Trainer], budget: int, checkpointing: bool
) -> None:
    # With lr = eps far above any gradient AdamW's first step is the gradient itself.
    learner = make(max_grad_norm=1e9, lr=1e4, eps=1e4, betas=(0.0, 0.0), activation_checkpointing=checkpointing)
    items, model, start = pairs(), plain_model(learner), parameters(learner)
    found = plain_scores(model, items)
    gap = found[:, 0] - found[:, 1]
    terms = torch.log1p(torch.exp(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]) - gap)) + 0.01 * found.sum(1) ** 2
    terms.mean().backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()

    result = learner.train([rows(items, budget)])
    wanted = [terms.mean().item(), norm, (gap > 0).float().mean().item(), gap.mean().item(), found.mean().item()]
    assert [result.metrics[f"train/{k}"] for k in NAMES[:5]] == pytest.approx(wanted, rel=1e-3)
    assert (result.metrics["train/pairs"], result.num_trained_tokens) == (
        5.0,
        sum(r.num_tokens for r in rows(items, budget)),
    )
    moved = parameters(learner)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(start[name] - moved[name], parameter.grad, rtol=1e-3, atol=1e-4 * norm)


def test_it_learns_eight_pairs_and_the_export_scores_alike(make: Callable[..., Trainer], tmp_path: Path) -> None:
    learner, items = make(lr=3e-3, lr_schedule="linear", total_steps=30, warmup_steps=2), pairs(((6, 6),) * 8)
    before = score(learner, items)
    results = [learner.train([rows(items)]).metrics for _ in range(30)]
    after = score(learner, items)
    assert (before[:, 0] > before[:, 1]).sum().item() < 8
    assert (after[:, 0] - after[:, 1] > torch.tensor([i / 10 for i in range(8)])).all()
    assert results[-1]["train/loss"] < 0.3 * results[0]["train/loss"]
    assert results[-1]["train/pair_accuracy"] == 1.0
    # Up in 2 steps, then down by 1/28 of the rate a step; the last one is not yet 0.
    rates = [results[i]["train/lr"] / 3e-3 for i in (0, 1, 2, 3, 29)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 27 / 28, 1 / 28])

    learner.export(str(tmp_path))
    exported: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    rounded = plain_model(learner)
    rounded.load_state_dict({k: v.bfloat16().float() for k, v in parameters(learner).items()})
    with torch.no_grad():
        found = plain_scores(exported, items)
        assert torch.equal(found, plain_scores(rounded, items))
    torch.testing.assert_close(found, after, rtol=0.05, atol=0.05)

    again = make(tmp_path)  # a classifier's folder keeps its head
    torch.testing.assert_close(score(again, items), found, rtol=0, atol=1e-4)


def test_the_exported_folder_says_what_it_is(seen: dict[str, Any], tiny_model_dir: Path) -> None:
    config = json.loads((seen["export"] / "config.json").read_text())
    found = [config[k] for k in ("architectures", "id2label", "pad_token_id", "dtype")]
    assert found == [["LlamaForSequenceClassification"], {"0": "LABEL_0"}, 2, "bfloat16"]
    weights = load_file(seen["export"] / "model.safetensors")
    assert (weights["score.weight"].shape, weights["score.weight"].dtype) == ((1, 64), torch.bfloat16)
    assert "lm_head.weight" not in weights and not (seen["export"] / "generation_config.json").exists()
    assert (seen["export"] / "tokenizer.json").read_bytes() == (tiny_model_dir / "tokenizer.json").read_bytes()


def test_scoring_between_steps_changes_nothing(make: Callable[..., Trainer]) -> None:
    out = []
    for look in (False, True):
        learner = make()
        for seed in (1, 2):
            learner.train([rows(pairs(seed=seed))])
            if look:
                score(learner, pairs(seed=3))
        out.append(parameters(learner))
    assert [k for k in out[0] if not torch.equal(out[0][k], out[1][k])] == []


def test_pairs_that_are_not_finite_are_skipped(make: Callable[..., Trainer]) -> None:
    learner = make()
    before = parameters(learner)
    result = learner.train([rows([replace(pairs()[0], margin=float("inf"))])])
    assert (result.optimizer_steps, result.skipped, result.num_trained_tokens) == (0, 1, 0)
    assert "train/pair_accuracy" not in result.metrics
    assert [k for k, v in parameters(learner).items() if not torch.equal(v, before[k])] == []


@pytest.mark.parametrize("step", [0, 1])
def test_two_ranks_take_the_steps_of_one(seen: dict[str, Any], step: int) -> None:
    (alone,), ranks = seen["of_1"], seen["of_2"]
    wanted = [alone["results"][step].metrics[f"train/{k}"] for k in NAMES]
    for rank in ranks:
        result = rank["results"][step]
        np.testing.assert_allclose([result.metrics[f"train/{k}"] for k in NAMES], wanted, rtol=1e-5, atol=1e-7)
        assert (result.optimizer_steps, result.skipped) == (1, 0)
    assert [r["results"][1].metrics["train/pairs"] for r in ranks] == [1.0, 1.0]


def test_two_ranks_end_with_the_weights_and_scores_of_one(seen: dict[str, Any]) -> None:
    (alone,), ranks = seen["of_1"], seen["of_2"]
    scores = [collect(alone["plan"], alone["scores"]), {}]
    for rank in ranks:
        scores[1] |= collect(rank["plan"], rank["scores"])
        for name, tensor in rank["parameters"].items():
            # AdamW's first steps are the gradient's sign where it is far from 0: a tiny gradient may differ more.
            torch.testing.assert_close(tensor, alone["parameters"][name], rtol=0, atol=2e-3)
    assert sorted(scores[1]) == [0, 1, 2, 3, 4]
    for index, found in scores[1].items():
        assert found == pytest.approx(scores[0][index], abs=1e-3)


def collect(plan: Any, scores: Any) -> dict[int, tuple[float, float]]:
    out = {}
    for row, values in zip(plan, scores, strict=True):
        for index, chosen, rejected in zip(row.pair_index.tolist(), row.chosen, row.rejected, strict=True):
            out[index] = (values[chosen].item(), values[rejected].item())
    return out


@pytest.mark.parametrize(("labels", "message"), [(1, "has no scalar head `score`"), (2, "has 2 labels, a scalar head")])
def test_a_model_that_gives_no_scalar_is_refused(tmp_path: Path, labels: int, message: str) -> None:
    sizes: dict[str, Any] = {
        "num_labels": labels,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    BertForSequenceClassification(BertConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"BertForSequenceClassification {message}"):
        RewardModel.load(str(tmp_path), False, False, 0)
