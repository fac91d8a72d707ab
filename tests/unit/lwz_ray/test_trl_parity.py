"""Our policy losses against TRL's GRPOTrainer, through its own loss method, on the same tensors.

The trainer is a real one over the tiny random model. In most tests its function of per-token logprobs hands out given
tensors, so that all arithmetic of the loss, and its gradient by the logprobs, is TRL's; one runs the model as well.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lwz_ray.config import AlgorithmConfig
from lwz_ray.kl import kl_terms
from lwz_ray.logprobs import chunked_logprobs
from lwz_ray.policy_losses import POLICY_LOSSES, TokenColumns
from lwz_ray.token_weights import token_weights_of
from tests.algorithms import algorithm

LENGTHS = [9, 1, 14, 6, 3, 11]
"""Trained tokens a sample; the rest of each row is padding."""
WIDTH = 14
MAX_TOKENS = 32
TEMPERATURE = 0.8
OF_TRL: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "epsilon": 0.2},
    "dr_grpo": {"loss_type": "dr_grpo", "epsilon": 0.2},
    "dapo": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    # TRL bounds the weight itself by epsilon_high, we by 1 + clip_high.
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
}
"""What each preset of ours is called there."""


def trainer_of(model_dir: Path, folder: Path, beta: float, **changes: Any) -> Any:
    """Return a GRPOTrainer on CPU, in training mode, at the one microbatch of a step.

    Its KL is GRPO's k3 as published; by default TRL multiplies it by the ratio.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    settings = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False, beta=beta,
        per_device_train_batch_size=len(LENGTHS), num_generations=2, gradient_accumulation_steps=1,
        max_completion_length=MAX_TOKENS, temperature=TEMPERATURE, use_bias_correction_kl=False, **changes,
    )  # fmt: skip
    trainer: Any = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["Write."] * len(LENGTHS)}),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture(scope="module")
def trainers(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, float], Any]:
    """Return trainers by preset and KL coefficient, each made once."""
    return cache(lambda name, beta: trainer_of(tiny_model_dir, tmp_path_factory.mktemp("trl"), beta, **OF_TRL[name]))


def tensors_of(dtype: torch.dtype, spread: float) -> dict[str, torch.Tensor]:
    """Return [samples, WIDTH] logprobs of three policies, numbers in the padding too, a mask and advantages."""
    torch.manual_seed(11)
    old = -4.0 * torch.rand(len(LENGTHS), WIDTH, dtype=torch.float64)
    logprobs = old + spread * torch.randn_like(old)
    return {
        "logprobs": logprobs.to(dtype).requires_grad_(),
        "old": old.to(dtype),
        "ref": (old + 0.5 * torch.randn_like(old)).to(dtype),
        "mask": (torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]),
        "advantages": torch.tensor([1.3, -0.7, 0.4, -1.9, 0.0, 1.7], dtype=dtype),
    }


def inputs_of(t: dict[str, torch.Tensor], prompt_ids: torch.Tensor, completion_ids: torch.Tensor) -> dict[str, Any]:
    """Return what TRL's loss method is called with."""
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": completion_ids,
        "completion_mask": t["mask"].to(t["old"].dtype),
        "advantages": t["advantages"],
        "old_per_token_logps": t["old"],
        "ref_per_token_logps": t["ref"],
        "num_items_in_batch": t["mask"].sum(),
    }


def trl_loss(trainer: Any, t: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return TRL's loss of given logprobs."""
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (t["logprobs"], torch.zeros_like(t["old"]), None)
    ids = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.int64)
    return trainer.compute_loss(trainer.model, inputs_of(t, ids[:, :2], ids))


def our_loss(config: AlgorithmConfig, t: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return our loss: flat columns of the trained tokens, global denominators."""
    mask = t["mask"]
    sample_of = torch.arange(len(LENGTHS))[:, None].expand_as(mask)[mask]
    logprobs = t["logprobs"][mask]
    columns = TokenColumns(logprobs, t["old"][mask], t["advantages"][sample_of], sample_of, len(LENGTHS))
    terms = POLICY_LOSSES[config.loss](columns, config.clip_low, config.clip_high).terms
    if config.kl_coefficient:
        terms = terms + config.kl_coefficient * kl_terms(logprobs, t["ref"][mask], config.kl_estimator)
    weights = token_weights_of(LENGTHS, config.loss_aggregation, MAX_TOKENS)
    return (torch.tensor(weights, dtype=terms.dtype)[sample_of] * terms).sum()


def gaps(trainer: Any, config: AlgorithmConfig, dtype: torch.dtype) -> tuple[float, float]:
    """Return the relative distances of our loss and of its gradient by the logprobs from TRL's."""
    # So that some tokens are bounded and others not: a sample's mean moves far less than one token.
    t = tensors_of(dtype, 1e-3 if config.loss == "gspo" else 0.3)
    ours, theirs = our_loss(config, t), trl_loss(trainer, t)
    mine, wanted = (torch.autograd.grad(loss, t["logprobs"])[0] for loss in (ours, theirs))
    assert wanted.abs().max() > 1e-3
    assert wanted[~t["mask"]].abs().max() == 0
    value = abs(ours.item() - theirs.item()) / abs(theirs.item())
    return value, ((mine - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", list(OF_TRL))
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_and_gradient_are_trl_s(name: str, beta: float, trainers: Callable[[str, float], Any]) -> None:
    trainer = trainers(name, beta)
    config = algorithm(name, kl_coefficient=beta, kl_estimator="k3", kl_in="loss")
    assert max(gaps(trainer, config, torch.float64)) < 1e-6
    assert max(gaps(trainer, config, torch.float32)) < 1e-5


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("grpo", {"clip_high": 0.21}),
        ("grpo", {"loss_aggregation": "token_mean"}),
        ("dr_grpo", {"loss_aggregation": "sequence_mean"}),
        ("dapo", {"clip_low": 0.19}),
        ("gspo", {"clip_high": 3e-4}),
        ("gspo", {"loss": "clip"}),
        ("grpo", {"kl_estimator": "k2"}),
        ("dapo", {"kl_coefficient": 0.041}),
    ],
)
def test_a_planted_error_breaks_it(name: str, wrong: dict[str, Any], trainers: Callable[[str, float], Any]) -> None:
    right = {"kl_coefficient": 0.04, "kl_estimator": "k3", "kl_in": "loss"}
    assert max(gaps(trainers(name, 0.04), algorithm(name, **right | wrong), torch.float64)) > 1e-4


def test_through_a_model_the_gradient_of_its_weights_is_trl_s(tiny_model_dir: Path, tmp_path: Path) -> None:
    # TRL computes logprobs with its own fused head, we with our chunks, both at the sampling temperature.
    trainer = trainer_of(tiny_model_dir, tmp_path, 0.04, **OF_TRL["dapo"])
    config, model = algorithm("dapo", kl_coefficient=0.04), trainer.model
    t = tensors_of(torch.float32, 0.0)
    ids = torch.randint(3, 1000, (len(LENGTHS), 4 + WIDTH))
    hidden = model.model(input_ids=ids).last_hidden_state[:, 3:-1].reshape(-1, model.config.hidden_size)
    logprobs, _ = chunked_logprobs(hidden, model.lm_head.weight, ids[:, 4:].reshape(-1), TEMPERATURE, 16)
    t["logprobs"] = logprobs.view(len(LENGTHS), WIDTH)
    t["old"] = t["logprobs"].detach() + 0.3 * torch.randn(len(LENGTHS), WIDTH)
    t["ref"] = t["logprobs"].detach() + 0.3 * torch.randn(len(LENGTHS), WIDTH)
    ours, theirs = our_loss(config, t), trainer.compute_loss(model, inputs_of(t, ids[:, :4], ids[:, 4:]))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    weights = [p for p in model.parameters() if p.requires_grad]
    mine, wanted = (torch.cat([g.flatten() for g in torch.autograd.grad(x, weights)]) for x in (ours, theirs))
    assert wanted.norm() > 1e-3
    assert (mine - wanted).norm() / wanted.norm() < 1e-5
