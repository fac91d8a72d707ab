"""The critic's objective: one packed microbatch to its share of the value loss and the sums that are reported."""

from dataclasses import dataclass

import numpy as np
import torch

from learners.value_model import ValueModel
from lwz_ray.packing import Microbatch
from lwz_ray.value_loss import value_terms

_SUMS = ("loss", "tokens", "clipped", "value", "return", "return_square", "residual_square")
_NO_SPREAD = 1e-12
"""Of the returns, relative to their mean square: rounding, not variance."""


@dataclass(frozen=True, slots=True)
class CriticObjective:
    """The clipped value loss of PPO (arXiv 1707.06347 eq. 9, with the clip of its reference implementation)."""

    value_clip: float | None

    @property
    def sum_keys(self) -> tuple[str, ...]:
        return _SUMS

    def facts(self, model: ValueModel, batch: Microbatch, device: torch.device) -> dict[str, torch.Tensor]:
        """Return `values` of the state before each trained token, float32 [num_trained], without gradient."""
        with torch.no_grad():
            return {"values": _values(model, batch, device)[: batch.num_trained]}

    def loss(self, model: ValueModel, batch: Microbatch, device: torch.device) -> tuple[torch.Tensor, list[float]]:
        """Return the microbatch's share of the global loss (scalar, with gradient) and its sums, as `sum_keys`.

        loss = sum_t w_t term_t, w_t the token weight and term_t of `lwz_ray.value_loss.value_terms`. Raises ValueError
        where trained tokens have no values or no returns.
        """
        everything, count = _values(model, batch, device), batch.num_trained
        values = everything[:count]
        old_values, returns = _column(batch, "values", device), _column(batch, "returns", device)
        terms, clipped = value_terms(values, old_values, returns, self.value_clip)
        share = (torch.from_numpy(batch.token_weights).to(device) * terms).sum()
        with torch.no_grad():
            wide, target = values.double(), returns.double()
            sums = torch.stack(
                [
                    share.double(),
                    torch.tensor(float(count), dtype=torch.float64, device=device),
                    clipped.sum().double(),
                    wide.sum(),
                    target.sum(),
                    target.square().sum(),
                    (target - wide).square().sum(),
                ]
            )
        # The untrained row enters with weight 0, so that backward reaches every parameter's hooks.
        return share + 0.0 * everything[count:].sum(), sums.tolist()

    def metrics(self, totals: dict[str, float], optimizer_steps: int) -> dict[str, float]:
        """Return means over the trained tokens of the steps that were taken.

        `explained_variance` = 1 - var(return - value) / var(return), of the values before each step; it is left out
        where all returns are equal.
        """
        out = {"train/tokens": totals["tokens"]}
        if not optimizer_steps:
            return out
        tokens = max(totals["tokens"], 1.0)
        value, target, square = (totals[k] / tokens for k in ("value", "return", "return_square"))
        out |= {
            "train/loss": totals["loss"] / optimizer_steps,
            "train/clip_fraction": totals["clipped"] / tokens,
            "train/value": value,
            "train/return": target,
        }
        variance = square - target**2
        if variance > _NO_SPREAD * square:
            unexplained = totals["residual_square"] / tokens - (target - value) ** 2
            out["train/explained_variance"] = 1.0 - unexplained / variance
        return out


def _values(model: ValueModel, batch: Microbatch, device: torch.device) -> torch.Tensor:
    """Return the values before the trained tokens, at least one: without a trained token there is one untrained row.

    A rank with nothing to train must still take part in the collectives of the others.
    """
    rows = batch.rows if batch.num_trained else np.zeros(1, dtype=np.int64)
    return model(
        torch.from_numpy(batch.token_ids)[None].to(device),
        torch.from_numpy(batch.position_ids)[None].to(device),
        batch.segments,
        torch.from_numpy(rows).to(device),
    )


def _column(batch: Microbatch, name: str, device: torch.device) -> torch.Tensor:
    found = getattr(batch, name)
    if found is None and batch.num_trained:
        raise ValueError(f"the critic's samples carry no {name}; annotate them and compute returns first")
    return torch.from_numpy(np.zeros(0, np.float32) if found is None else found).to(device)
