"""The policy objective: one packed microbatch to its clipped loss and the sums that are reported."""

from dataclasses import dataclass

import numpy as np
import torch

from learners.policy_model import PolicyModel
from lwz_ray.losses import clipped_policy_loss
from lwz_ray.packing import Microbatch


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """The clipped policy loss. Its ratio is taken against the engine's processed `rollout_logprobs`."""

    clip_epsilon: float
    temperature: float

    @property
    def sum_keys(self) -> tuple[str, ...]:
        return ("loss", "clipped", "abs_log_ratio", "k3", "tokens")

    def loss(self, model: PolicyModel, batch: Microbatch, device: torch.device) -> tuple[torch.Tensor, list[float]]:
        """Return the microbatch's share of the global loss (scalar, with gradient) and its sums, as `sum_keys`."""
        rows, targets = batch.rows, batch.targets
        if batch.num_trained == 0:
            # Nothing to train here, yet this rank must take part in the collectives of the others.
            rows = targets = np.zeros(1, dtype=np.int64)
        logprobs = model(
            torch.from_numpy(batch.token_ids)[None].to(device),
            torch.from_numpy(batch.position_ids)[None].to(device),
            batch.segments,
            torch.from_numpy(rows).to(device),
            torch.from_numpy(targets).to(device),
            self.temperature,
        )
        out = clipped_policy_loss(
            logprobs[: batch.num_trained],
            torch.from_numpy(batch.rollout_logprobs).to(device),
            torch.from_numpy(batch.advantages).to(device),
            torch.from_numpy(batch.token_weights).to(device),
            self.clip_epsilon,
        )
        # The untrained row enters with weight 0, so that backward reaches every parameter's hooks.
        loss = out.loss + 0.0 * logprobs[batch.num_trained :].sum()
        sums = [out.loss.item(), out.num_clipped.item(), out.sum_abs_log_ratio.item(), out.sum_k3.item()]
        return loss, [*map(float, sums), float(batch.num_trained)]

    def metrics(self, totals: dict[str, float], optimizer_steps: int) -> dict[str, float]:
        """Return means over the trained tokens of the steps that were taken."""
        out = {"train/tokens": totals["tokens"]}
        if optimizer_steps:
            tokens = max(totals["tokens"], 1.0)
            out |= {
                "train/loss": totals["loss"] / optimizer_steps,
                "train/clip_fraction": totals["clipped"] / tokens,
                "train/mismatch": totals["abs_log_ratio"] / tokens,
                "train/mismatch_k3": totals["k3"] / tokens,
            }
        return out
