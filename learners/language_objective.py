"""The language-model objective: one packed row to its share of the negative log-likelihood, and sums by source."""

from dataclasses import dataclass

import torch

from learners.policy_model import PolicyModel
from learners.policy_objective import trained_logprobs
from lwz_ray.packing import Microbatch


@dataclass(frozen=True, slots=True)
class LanguageObjective:
    """Predict each trained token from those before it in its sample; documents of one row do not see each other."""

    sources: tuple[str, ...]
    """Names by index, at least one; sums and metrics are kept for each."""

    @property
    def sum_keys(self) -> tuple[str, ...]:
        each = [f"{name}_{what}" for what in ("nll", "tokens") for name in self.sources]
        return ("loss", "tokens", "nll", *(f"source/{key}" for key in each))

    def facts(self, model: PolicyModel, batch: Microbatch, device: torch.device) -> dict[str, torch.Tensor]:
        """Return `old_logprobs` of the trained tokens, float32 [num_trained], without gradient."""
        with torch.no_grad():
            return {"old_logprobs": trained_logprobs(model, batch, device, 1.0)[0][: batch.num_trained]}

    def loss(self, model: PolicyModel, batch: Microbatch, device: torch.device) -> tuple[torch.Tensor, list[float]]:
        """Return the microbatch's share of the global loss (scalar, with gradient) and its sums, as `sum_keys`.

        loss = - sum_t w_t log p(token_t | tokens of its sample before t), w_t the token weight; `nll` is the same with
        every weight 1, in nats.
        """
        everything, count = trained_logprobs(model, batch, device, 1.0)[0], batch.num_trained
        nll = -everything[:count]
        share = (torch.from_numpy(batch.token_weights).to(device) * nll).sum()
        with torch.no_grad():
            source_of = torch.from_numpy(batch.sample_source[batch.sample_of]).to(device)
            columns = torch.stack([nll.double(), torch.ones_like(nll, dtype=torch.float64)])
            by_source = columns.new_zeros(2, len(self.sources)).index_add(1, source_of, columns)
            whole = torch.stack([share.double(), columns[1].sum(), columns[0].sum()])
            sums = torch.cat([whole, by_source.flatten()])
        # The untrained row enters with weight 0, so that backward reaches every parameter's hooks.
        return share + 0.0 * everything[count:].sum(), sums.tolist()

    def metrics(self, totals: dict[str, float], optimizer_steps: int) -> dict[str, float]:
        """Return means over the trained tokens of the steps that were taken; no loss of a source without tokens."""
        out = {"train/tokens": totals["tokens"]}
        if not optimizer_steps:
            return out
        out["train/loss"] = totals["nll"] / max(totals["tokens"], 1.0)
        for name in self.sources:
            tokens = totals[f"source/{name}_tokens"]
            out[f"source/{name}_tokens"] = tokens
            if tokens:
                out[f"source/{name}_loss"] = totals[f"source/{name}_nll"] / tokens
        return out
