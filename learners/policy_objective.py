"""The policy objective: one packed microbatch to its share of the loss and the sums that are reported."""

from dataclasses import dataclass

import numpy as np
import torch

from learners.policy_model import PolicyModel
from lwz_ray.config_algorithm import AlgorithmConfig
from lwz_ray.kl import kl_terms
from lwz_ray.off_policy import correction_weights
from lwz_ray.packing import Microbatch
from lwz_ray.policy_losses import POLICY_LOSSES, TokenColumns

AGES = 4
"""Tokens of age 0, 1, 2, and 3 and more are reported apart."""
_AGE_SUMS = ("tokens", "mismatch", "bounded")
_SUMS = ("loss", "tokens", "clipped", "ratio_shift", "mismatch", "mismatch_k3", "bounded", "entropy", "kl")


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """The policy loss of the config's algorithm, with correction, KL and entropy terms."""

    algorithm: AlgorithmConfig
    temperature: float

    @property
    def sum_keys(self) -> tuple[str, ...]:
        return (*_SUMS, *(f"age_{age}_{what}" for what in _AGE_SUMS for age in range(AGES)))

    def logprobs(
        self, model: PolicyModel, batch: Microbatch, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `trained_logprobs` does, at the temperature of sampling."""
        return trained_logprobs(model, batch, device, self.temperature)

    def facts(self, model: PolicyModel, batch: Microbatch, device: torch.device) -> dict[str, torch.Tensor]:
        """Return `old_logprobs` of the trained tokens, float32 [num_trained], without gradient."""
        with torch.no_grad():
            return {"old_logprobs": self.logprobs(model, batch, device)[0][: batch.num_trained]}

    def loss(self, model: PolicyModel, batch: Microbatch, device: torch.device) -> tuple[torch.Tensor, list[float]]:
        """Return the microbatch's share of the global loss (scalar, with gradient) and its sums, as `sum_keys`.

        loss = sum_t w_t (c_t term_t + kl_coefficient kl_t - entropy_coefficient H_t), w_t the token weight and c_t the
        off-policy weight.
        """
        algorithm, count = self.algorithm, batch.num_trained
        everything, entropies = self.logprobs(model, batch, device)
        logprobs, entropy = everything[:count], entropies[:count]

        def column(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(device)

        rollout, weights, sample_of = (
            column(batch.rollout_logprobs),
            column(batch.token_weights),
            column(batch.sample_of),
        )
        # Of the first step of a batch, this very forward pass is the policy before the step.
        before = logprobs.detach() if batch.old_logprobs is None else column(batch.old_logprobs)
        old = rollout if algorithm.old_logprobs == "rollout" else before
        columns = TokenColumns(logprobs, old, column(batch.advantages), sample_of, batch.num_samples)
        policy = POLICY_LOSSES[algorithm.loss](columns, algorithm.clip_low, algorithm.clip_high)
        corrected = correction_weights(
            old, rollout, sample_of, batch.num_samples, algorithm.correction, algorithm.correction_low,
            algorithm.correction_high,
        )  # fmt: skip
        terms = corrected.weights * policy.terms
        kl = torch.zeros_like(old)
        if batch.ref_logprobs is not None:
            kl = kl_terms(logprobs, column(batch.ref_logprobs), algorithm.kl_estimator)
            if algorithm.kl_in == "loss":
                terms = terms + algorithm.kl_coefficient * kl
        if algorithm.entropy_coefficient:
            terms = terms - algorithm.entropy_coefficient * entropy
        share = (weights * terms).sum()
        with torch.no_grad():
            shift, difference = (logprobs - old).abs().sum(), before - rollout
            k3 = (torch.exp(difference) - 1.0 - difference).sum()
            by_age = _sums_by_age(column(batch.token_ages), difference.abs(), corrected.bounded)
            one = [
                share,
                torch.tensor(float(count), device=device),
                policy.clipped.sum(),
                shift,
                difference.abs().sum(),
            ]
            one += [k3, corrected.bounded.sum(), entropy.sum(), kl.sum()]
            sums = torch.cat([torch.stack([x.double() for x in one]), by_age.flatten()])
        # The untrained row enters with weight 0, so that backward reaches every parameter's hooks.
        return share + 0.0 * everything[count:].sum(), sums.tolist()

    def metrics(self, totals: dict[str, float], optimizer_steps: int) -> dict[str, float]:
        """Return means over the trained tokens of the steps that were taken."""
        out = {"train/tokens": totals["tokens"]}
        if not optimizer_steps:
            return out
        tokens = max(totals["tokens"], 1.0)
        out |= {
            "train/loss": totals["loss"] / optimizer_steps,
            "train/clip_fraction": totals["clipped"] / tokens,
            "train/ratio_shift": totals["ratio_shift"] / tokens,
            "train/entropy": totals["entropy"] / tokens,
            "train/mismatch": totals["mismatch"] / tokens,
            "train/mismatch_k3": totals["mismatch_k3"] / tokens,
            "train/correction_bounded": totals["bounded"] / tokens,
        }
        if self.algorithm.uses_reference:
            out["train/kl"] = totals["kl"] / tokens
        for age in range(AGES):
            if count := totals[f"age_{age}_tokens"]:
                out[f"train/age_{age}_share"] = count / tokens
                out[f"train/age_{age}_mismatch"] = totals[f"age_{age}_mismatch"] / count
                out[f"train/age_{age}_bounded"] = totals[f"age_{age}_bounded"] / count
        return out


def trained_logprobs(
    model: PolicyModel, batch: Microbatch, device: torch.device, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logprobs and entropies of the trained tokens, float32 [num_trained], at least one row of each.

    Without a trained token there is one untrained row: this rank must take part in the collectives of the others.
    """
    rows, targets = batch.rows, batch.targets
    if batch.num_trained == 0:
        rows = targets = np.zeros(1, dtype=np.int64)
    return model(
        torch.from_numpy(batch.token_ids)[None].to(device),
        torch.from_numpy(batch.position_ids)[None].to(device),
        batch.segments,
        torch.from_numpy(rows).to(device),
        torch.from_numpy(targets).to(device),
        temperature,
    )


def _sums_by_age(ages: torch.Tensor, mismatch: torch.Tensor, bounded: torch.Tensor) -> torch.Tensor:
    """Return float64 [3, AGES]: tokens, absolute mismatch and bounded tokens of each age, as `_AGE_SUMS`."""
    at = ages.long().clamp(0, AGES - 1)
    columns = torch.stack([torch.ones_like(mismatch), mismatch, bounded.to(mismatch.dtype)]).double()
    return columns.new_zeros(len(_AGE_SUMS), AGES).index_add(1, at, columns)
