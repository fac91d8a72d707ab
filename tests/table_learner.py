"""Policy and critic as one small table each, which the project's own packing and objectives train in this process."""

import asyncio
import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from learners.group import scatter_facts
from learners.objective import Objective
from lwz_ray.packing import Microbatch, split_over_ranks
from lwz_ray.records import StepResult, TokenFacts, TrainSample

CPU = torch.device("cpu")
VOCABULARY = 8


class BigramModel(torch.nn.Module):
    """Gives what the policy model gives, of a table of logits by the token before."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(VOCABULARY, VOCABULARY))

    def forward(
        self, token_ids: torch.Tensor, _positions: Any, _segments: Any, rows: Any, targets: Any, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = torch.log_softmax(self.table[token_ids[0, rows]] / temperature, dim=1)
        return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(1)


class BigramValues(torch.nn.Module):
    """Gives what the value model gives, of a table of values by the token before."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, token_ids: torch.Tensor, _positions: Any, _segments: Any, rows: Any) -> torch.Tensor:
        return self.table[token_ids[0, rows]]


class TableLearner:
    """Implements `Learner` over one small table, with the packing and the objectives of the project."""

    def __init__(self, model: Any, objective: Objective, lr: float) -> None:
        self.table: torch.nn.Parameter = model.table
        self._model, self._objective = model, objective
        self._optimizer = torch.optim.Adam([self.table], lr=lr)
        self._reference = self.table.detach().clone()
        self._unwritten: tuple[str, Any] | None = None
        self.calls = 0
        self.minibatches: list[list[list[TrainSample]]] = []
        """Of every call of `train`."""
        self.poisoned: set[int] = set()
        """Calls of `train`, counted from 1, whose loss is not a number."""
        self.duration_s = 0.0
        self.busy_until: Callable[[], bool] = lambda: True
        """A step takes at least until this holds."""

    @property
    def logits(self) -> torch.Tensor:
        return self.table

    async def train(self, minibatches: Sequence[Sequence[TrainSample]]) -> StepResult:
        """Take one optimizer step per minibatch; others run meanwhile."""
        await asyncio.sleep(self.duration_s)
        while not self.busy_until():  # noqa: ASYNC110 - it looks at plain state that sets no event
            await asyncio.sleep(0.001)
        self.calls += 1
        self.minibatches.append([list(m) for m in minibatches])
        keys, taken = self._objective.sum_keys, 0
        totals = dict.fromkeys(keys, 0.0)
        for samples in minibatches:
            self._optimizer.zero_grad()
            found = [self._objective.loss(self._model, row, CPU) for row in self._rows(samples)]
            loss = torch.stack([share for share, _ in found]).sum()
            if self.calls in self.poisoned:
                loss = loss * float("nan")
            if not torch.isfinite(loss):
                continue
            loss.backward()
            self._optimizer.step()
            taken += 1
            totals = {k: totals[k] + sum(sums[i] for _, sums in found) for i, k in enumerate(keys)}
        metrics = self._objective.metrics(totals, taken)
        return StepResult(metrics, taken, len(minibatches) - taken, int(totals["tokens"]))

    async def annotate(self, samples: Sequence[TrainSample]) -> list[TokenFacts]:
        rows = self._rows(samples)
        said = [self._facts(row) for row in rows]
        self._swap()
        for facts, row in zip(said, rows, strict=True):
            if "old_logprobs" in facts:
                facts["ref_logprobs"] = self._facts(row)["old_logprobs"]
        self._swap()
        return scatter_facts(samples, list(zip(rows, said, strict=True)))

    async def refresh_reference(self) -> None:
        self._reference = self.table.detach().clone()

    def _swap(self) -> None:
        self.table.data, self._reference = self._reference, self.table.data

    def _facts(self, row: Microbatch) -> dict[str, np.ndarray]:
        return {k: v.numpy().copy() for k, v in self._objective.facts(self._model, row, CPU).items()}

    def _rows(self, samples: Sequence[TrainSample]) -> list[Microbatch]:
        return split_over_ranks(samples, budget=40, ranks=1)[0]

    async def save(self, folder: str) -> None:
        state = {"table": self.table.detach(), "optimizer": self._optimizer.state_dict(), "reference": self._reference}
        self._unwritten = (f"{folder}/learner.pt", copy.deepcopy(state))

    async def finish_save(self) -> None:
        if self._unwritten is not None:
            path, state = self._unwritten
            await asyncio.to_thread(torch.save, state, path)
            self._unwritten = None

    async def load(self, folder: str) -> None:
        state = torch.load(f"{folder}/learner.pt")
        with torch.no_grad():
            self.table.copy_(state["table"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._reference = state["reference"]

    async def export(self, folder: str) -> None:
        torch.save(self.table.detach(), f"{folder}/logits.pt")
