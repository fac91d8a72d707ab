"""The policy objective: one packed microbatch to its clipped loss and the sums that are reported."""

from dataclasses import dataclass

import numpy as np
import torch

from learners.policy_model import PolicyModel
from lwz_ray.losses import clipped_policy_loss
from lwz_ray.packing import Microbatch

SUM_KEYS = ("loss", "clipped", "abs_log_ratio", "k3", "tokens")


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """The clipped policy loss. Its ratio is taken against the engine's processed `rollout_logprobs`."""

    clip_epsilon: float
    temperature: float

    def loss(self, model: PolicyModel, batch: Microbatch, device: torch.device) -> tuple[torch.Tensor, list[float]]:
        """Return the microbatch's share of the global loss (scalar, with gradient) and sums in the order of SUM_KEYS."""
        rows = np.flatnonzero(batch.loss_mask)
        if rows.size == 0:
            # Nothing to train here, yet this rank must take part in the collectives of the others.
            rows = np.zeros(1, dtype=np.int64)

        def column(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values[rows]).to(device)

        logprobs = model(
            torch.from_numpy(batch.token_ids)[None].to(device),
            torch.from_numpy(batch.position_ids)[None].to(device),
            tuple(batch.boundaries.tolist()),
            torch.from_numpy(rows).to(device),
            column(batch.targets),
            self.temperature,
        )
        out = clipped_policy_loss(
            logprobs,
            column(batch.old_logprobs),
            column(batch.advantages),
            column(batch.loss_mask),
            column(batch.token_weights),
            self.clip_epsilon,
        )
        sums = [out.loss.item(), out.num_clipped.item(), out.sum_abs_log_ratio.item(), out.sum_k3.item()]
        return out.loss, [*map(float, sums), float(batch.loss_mask.sum())]
