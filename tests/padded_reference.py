"""What packed rows must equal: a plain transformers forward over a padded batch, full logits, and formulas on matrices.

Nothing here is shared with the packed path but the records: no packing, no chunks, no flat columns.

    from tests.padded_reference import annotated, packed_against_padded
    difference = packed_against_padded(folder, annotated(samples), algorithm)
    difference.loss, difference.gradient
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from learners.policy_model import PolicyModel
from learners.policy_objective import PolicyObjective
from lwz_ray.config import AlgorithmConfig
from lwz_ray.packing import Microbatch, split_over_ranks
from lwz_ray.records import TokenFacts, TrainSample


@dataclass(frozen=True, slots=True)
class Difference:
    """How far packed rows are from the padded batch, in float32."""

    loss: float
    """|packed - padded|, of the whole batch's loss"""
    gradient: float
    """||packed - padded|| / ||padded|| over all parameters"""
    padded_loss: float
    num_rows: int
    """Packed rows that the batch took."""


@dataclass(frozen=True, slots=True)
class _Padded:
    """Matrices [num_samples, longest - 1]: entry t is about token t + 1, 0 where it is not trained."""

    trained: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    rollout: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor


def annotated(samples: Sequence[TrainSample], seed: int = 2, spread: float = 0.1) -> list[TrainSample]:
    """Return the samples with old and reference logprobs, some way (nats) off the rollout's."""
    rng = np.random.default_rng(seed)

    def near(sample: TrainSample) -> np.ndarray:
        moved = sample.rollout_logprobs + spread * rng.standard_normal(sample.num_tokens)
        return np.where(sample.loss_mask, moved, 0.0).astype(np.float32)

    return [replace(s, facts=TokenFacts(old_logprobs=near(s), ref_logprobs=near(s))) for s in samples]


def packed_against_padded(
    folder: Path | str,
    samples: Sequence[TrainSample],
    algorithm: AlgorithmConfig,
    *,
    budget: int = 64,
    temperature: float = 0.8,
    chunk_tokens: int = 64,
    activation_checkpointing: bool = True,
    change: Callable[[Microbatch], Microbatch] = lambda row: row,
) -> Difference:
    """Return how far loss and gradients over packed rows of `budget` tokens are from those over the padded batch.

    change: applied to every packed row, so that a caller can see what a wrong one gives.
    """
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    padded = padded_loss(plain, samples, algorithm, temperature)
    padded.backward()
    model = PolicyModel.load(str(folder), chunk_tokens, False, activation_checkpointing).float()
    objective, rows = PolicyObjective(algorithm, temperature), split_over_ranks(samples, budget, 1)[0]
    packed = 0.0
    for row in rows:
        share, _ = objective.loss(model, change(row), torch.device("cpu"))
        share.backward()
        packed += float(share.detach())
    return Difference(
        loss=abs(packed - float(padded.detach())),
        gradient=_relative_difference(model.lm, plain),
        padded_loss=float(padded.detach()),
        num_rows=len(rows),
    )


def _relative_difference(model: torch.nn.Module, plain: torch.nn.Module) -> float:
    pairs = list(zip(model.named_parameters(), plain.named_parameters(), strict=True))
    off = sum(float((a.grad - b.grad).double().square().sum()) for (_, a), (_, b) in pairs)  # type: ignore[operator]
    whole = sum(float(b.grad.double().square().sum()) for _, (_, b) in pairs)  # type: ignore[union-attr]
    return (off / whole) ** 0.5


def padded_loss(
    lm: Any, samples: Sequence[TrainSample], algorithm: AlgorithmConfig, temperature: float
) -> torch.Tensor:
    """Return the loss of a whole batch (scalar, with gradient) as the papers write it, over padded sequences."""
    c = _forward(lm, samples, temperature)
    old = c.rollout if algorithm.old_logprobs == "rollout" else c.old
    count = c.trained.sum(1, keepdim=True)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values * c.trained).sum(1, keepdim=True) / count

    terms = _POLICY[algorithm.loss](c, old, mean, algorithm.clip_low, algorithm.clip_high)
    terms = terms * _correction(old - c.rollout, mean, algorithm)
    if algorithm.uses_reference and algorithm.kl_in == "loss":
        terms = terms + algorithm.kl_coefficient * _kl(c.logprobs, c.ref, algorithm.kl_estimator)
    terms = terms - algorithm.entropy_coefficient * c.entropies
    return (terms * c.weights * c.trained).sum()


def _forward(lm: Any, samples: Sequence[TrainSample], temperature: float) -> _Padded:
    longest = max(s.num_tokens for s in samples)

    def matrix(column: Callable[[TrainSample], Any], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        out = torch.zeros(len(samples), longest, dtype=dtype)
        for i, sample in enumerate(samples):
            out[i, : sample.num_tokens] = torch.as_tensor(column(sample), dtype=dtype)
        return out

    ids, mask = matrix(lambda s: s.token_ids, torch.int64), matrix(lambda s: np.ones(s.num_tokens), torch.int64)
    log_p = torch.log_softmax(lm(input_ids=ids, attention_mask=mask).logits[:, :-1] / temperature, dim=2)
    logprobs = log_p.gather(2, ids[:, 1:, None])[:, :, 0]
    old, ref, facts = logprobs.detach(), torch.zeros_like(logprobs), samples[0].facts or TokenFacts()
    if facts.old_logprobs is not None:
        old = matrix(lambda s: (s.facts or TokenFacts()).old_logprobs)[:, 1:]
    if facts.ref_logprobs is not None:
        ref = matrix(lambda s: (s.facts or TokenFacts()).ref_logprobs)[:, 1:]
    return _Padded(
        trained=matrix(lambda s: s.loss_mask)[:, 1:],
        logprobs=logprobs,
        entropies=-(log_p.exp() * log_p).sum(2),
        rollout=matrix(lambda s: s.rollout_logprobs)[:, 1:],
        advantages=matrix(lambda s: s.advantages)[:, 1:],
        weights=matrix(lambda s: np.full(s.num_tokens, s.token_weight))[:, 1:],
        old=old,
        ref=ref,
    )


def _surrogate(ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def _clip(c: _Padded, old: torch.Tensor, mean: Any, low: float, high: float) -> torch.Tensor:
    return _surrogate((c.logprobs - old).exp(), c.advantages, low, high)


def _gspo(c: _Padded, old: torch.Tensor, mean: Any, low: float, high: float) -> torch.Tensor:
    # Every token of a sequence has the sequence's ratio, and the gradient of its own logprob (GSPO-token).
    sequence = mean(c.logprobs.detach() - old).exp()
    return _surrogate(sequence * (c.logprobs - c.logprobs.detach()).exp(), c.advantages, low, high)


def _cispo(c: _Padded, old: torch.Tensor, mean: Any, low: float, high: float) -> torch.Tensor:
    weight = (c.logprobs.detach() - old).exp().clamp(1 - low, 1 + high)
    return -weight * c.advantages * c.logprobs


def _reinforce(c: _Padded, old: torch.Tensor, mean: Any, low: float, high: float) -> torch.Tensor:
    return -c.advantages * c.logprobs


_POLICY: dict[str, Callable[..., torch.Tensor]] = {
    "clip": _clip,
    "gspo": _gspo,
    "cispo": _cispo,
    "reinforce": _reinforce,
}


def _correction(log_weights: torch.Tensor, mean: Any, algorithm: AlgorithmConfig) -> torch.Tensor:
    method, low, high = algorithm.correction, algorithm.correction_low, algorithm.correction_high
    log_weights = log_weights.detach()
    if method == "none":
        return torch.ones_like(log_weights)
    weights = (mean(log_weights) if method.startswith("sequence") else log_weights).exp().expand_as(log_weights)
    if method.endswith("truncated"):
        return weights.clamp(max=high)
    if method.endswith("masked"):
        return torch.where((weights >= low) & (weights <= high), weights, 0.0)
    return weights


def _kl(logprobs: torch.Tensor, ref: torch.Tensor, estimator: str) -> torch.Tensor:
    d = ref - logprobs
    return {"k1": -d, "k2": d * d / 2, "k3": d.exp() - 1 - d}[estimator]
