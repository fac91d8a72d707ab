"""The preference objective: one packed row of texts to the Bradley-Terry loss of the pairs among them."""

from dataclasses import dataclass

import torch

from learners.reward_model import RewardModel
from lwz_ray.preference_loss import preference_loss
from lwz_ray.preferences import PairBatch


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """The Bradley-Terry loss with its centring term."""

    center_coefficient: float

    @property
    def sum_keys(self) -> tuple[str, ...]:
        return ("loss", "correct", "gap", "score", "pairs", "tokens")

    def loss(self, model: RewardModel, batch: PairBatch, device: torch.device) -> tuple[torch.Tensor, list[float]]:
        """Return the row's share of the global loss (scalar, with gradient) and its sums, as `sum_keys`."""
        scores = score_texts(model, batch, device)
        chosen = scores[torch.from_numpy(batch.chosen).to(device)]
        rejected = scores[torch.from_numpy(batch.rejected).to(device)]
        out = preference_loss(
            chosen,
            rejected,
            torch.from_numpy(batch.margins).to(device),
            torch.from_numpy(batch.weights).to(device),
            self.center_coefficient,
        )
        # A row without pairs enters with weight 0, so that backward reaches every parameter's hooks.
        loss = out.loss if batch.num_pairs else 0.0 * scores.sum()
        score = 0.5 * (chosen + rejected).detach().sum()
        sums = [out.loss.item(), out.num_correct.item(), out.sum_gap.item(), score.item()]
        trained = batch.num_tokens if batch.num_pairs else 0
        return loss, [*map(float, sums), float(batch.num_pairs), float(trained)]

    def facts(self, model: RewardModel, batch: PairBatch, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the row's `scores`, float32 [num_texts], without gradient."""
        with torch.no_grad():
            return {"scores": score_texts(model, batch, device)}

    def metrics(self, totals: dict[str, float], optimizer_steps: int) -> dict[str, float]:
        """Return means over the pairs of the steps that were taken."""
        out = {"train/tokens": totals["tokens"], "train/pairs": totals["pairs"]}
        if optimizer_steps:
            pairs = max(totals["pairs"], 1.0)
            out |= {
                "train/loss": totals["loss"] / optimizer_steps,
                "train/pair_accuracy": totals["correct"] / pairs,
                "train/score_gap": totals["gap"] / pairs,
                "train/score_mean": totals["score"] / pairs,
            }
        return out


def score_texts(model: RewardModel, batch: PairBatch, device: torch.device) -> torch.Tensor:
    """Return float32 scores [num_texts] of a row, in the order of its `ends`."""
    return model(
        torch.from_numpy(batch.token_ids)[None].to(device),
        torch.from_numpy(batch.position_ids)[None].to(device),
        batch.segments,
        torch.from_numpy(batch.ends).to(device),
    )
