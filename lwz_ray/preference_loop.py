"""The supervised loop over preference pairs: take the next pairs of the order, train, report, save.

pairs ──order──▶ batch of pairs_per_step ──▶ learner.train ──▶ metrics ──▶ checkpoint now and then
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.loop import Checkpoints
from lwz_ray.preference_data import PairOrder
from lwz_ray.preferences import EncodedPair
from lwz_ray.protocols import Learner
from lwz_ray.records import StepResult
from lwz_ray.skipped_steps import SkippedSteps


@dataclass(slots=True)
class PreferenceProgress:
    """Where the run stands. The data position is `step`: each takes the same number of pairs."""

    step: int = 0
    optimizer_steps: int = 0
    skipped_steps: int = 0
    pairs_trained: int = 0
    tokens_trained: int = 0

    @property
    def policy_version(self) -> int:
        """Count weight states: steps that changed the weights."""
        return self.optimizer_steps


@dataclass(frozen=True, slots=True)
class PreferenceParts:
    """What the loop drives."""

    learner: Learner
    log_step: Callable[[Mapping[str, Any]], None]
    checkpoints: Checkpoints
    evaluate: Callable[[], Awaitable[dict[str, float]]]
    """Evaluate the present weights on held-out pairs, as `preference/what`."""


class PreferenceLoop:
    """One run of the loop; `run` returns when the steps are done or `stop` is set."""

    def __init__(
        self, config: Config, pairs: Sequence[EncodedPair], sources: Sequence[str], parts: PreferenceParts
    ) -> None:
        """sources: of each pair, in the order of `pairs`."""
        self.config, self.parts = config, parts
        self.progress = PreferenceProgress()
        self._pairs = pairs
        self._order = PairOrder(sources, config.seed)
        self._digest = _digest(pairs, sources, config)
        self._skipped = SkippedSteps(config.failures.max_consecutive_skipped_steps, "the pairs")
        self._saved_step: int | None = None
        self._kept: dict[str, Any] = {}
        self._measured: dict[str, Any] = {}

    def keep(self, name: str, value: Any) -> None:
        """Put a value (JSON's own types) into every checkpoint, for a run that continues."""
        self._kept[name] = value

    def kept(self, name: str) -> Any:
        """Return a value that `keep` put aside, also before a resume; None where there is none."""
        return self._kept.get(name)

    async def run(self, stop: asyncio.Event) -> None:
        """Train until `steps` are done; leaves a checkpoint of the last step, also when stopped.

        Raises BudgetExceededError after that checkpoint where too many steps in a row were not finite.
        """
        while self.progress.step < self.config.steps and not stop.is_set() and not self._skipped.exceeded:
            await self._step()
        await self._save()
        self._skipped.check()

    async def _step(self) -> None:
        started = time.monotonic()
        size = self.config.preference.pairs_per_step
        start = self.progress.step * size
        batch = [self._pairs[i] for i in self._order.indices(start, start + size)]
        result = await self.parts.learner.train([batch])
        self._count(result, size)
        metrics = dict(result.metrics)
        step_s = time.monotonic() - started
        metrics["time/step_s"] = step_s
        metrics["train/tokens_per_s"] = result.num_trained_tokens / step_s
        metrics["train/epoch"] = (start + size) / self._order.num_pairs
        step, every = self.progress.step, self.config.eval.every_steps
        if every and step % every == 0 and step < self.config.steps:
            metrics |= await self.parts.evaluate()
        self.parts.log_step({"step": step, "policy_version": self.progress.policy_version, **metrics})
        self._measured = metrics
        if step % self.config.run.checkpoint_every_steps == 0:
            await self._save()

    def _count(self, result: StepResult, num_pairs: int) -> None:
        """Count the step."""
        progress = self.progress
        progress.step += 1
        progress.optimizer_steps += result.optimizer_steps
        progress.skipped_steps += result.skipped
        progress.pairs_trained += num_pairs
        progress.tokens_trained += result.num_trained_tokens
        self._skipped.count(result)

    async def _save(self) -> None:
        """Checkpoint the present step once; before the first step there is nothing to keep."""
        if self.progress.step == 0 or self._saved_step == self.progress.step:
            return
        await self.parts.checkpoints.save(self.progress.step, self.state(), [], self._measured)
        self._saved_step = self.progress.step

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {"progress": asdict(self.progress), "kept": self._kept, "pairs": self._digest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint. Raises UserError where the pairs are not those that it was trained on."""
        if state["pairs"] != self._digest:
            raise UserError(
                "run.resume=auto: the training pairs are not those of the checkpoint (another preference.path, seed, "
                "held_out_share, pairs_per_step or model.max_length_tokens?), so their order cannot be continued; give "
                "the old values, or choose another run.name"
            )
        self.progress = PreferenceProgress(**state["progress"])
        self._kept = dict(state["kept"])
        self._saved_step = self.progress.step


def _digest(pairs: Sequence[EncodedPair], sources: Sequence[str], config: Config) -> str:
    """Return what the order and content of the batches depend on, as one word."""
    found = hashlib.sha256(f"{config.seed} {config.preference.pairs_per_step}".encode())
    for pair, source in zip(pairs, sources, strict=True):
        found.update(f"{source}\0{pair.margin}\0".encode())
        for part in (pair.head, pair.chosen, pair.rejected):
            found.update(f"{part.size} ".encode() + part.tobytes())
    return found.hexdigest()[:16]
