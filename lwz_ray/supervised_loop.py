"""The supervised loop over samples of text: take the next batch, train, report, save.

documents or chat pairs ──next──▶ samples of a step ──▶ learner.train ──▶ metrics ──▶ checkpoint now and then
                                      ▲ read ahead by one step, in a thread
"""

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lwz_ray.config import Config
from lwz_ray.errors import UserError, WaitTimeoutError
from lwz_ray.loop import Checkpoints
from lwz_ray.protocols import Learner
from lwz_ray.records import StepResult, TrainSample
from lwz_ray.skipped_steps import SkippedSteps
from lwz_ray.supervised import SupervisedBatches
from lwz_ray.token_budget import TokenBudget


@dataclass(slots=True)
class SupervisedProgress:
    """Where the run stands; the data keeps its own position."""

    step: int = 0
    optimizer_steps: int = 0
    skipped_steps: int = 0
    samples_trained: int = 0
    tokens_trained: int = 0
    """Tokens that a loss was taken of."""

    @property
    def policy_version(self) -> int:
        """Count weight states: steps that changed the weights."""
        return self.optimizer_steps


@dataclass(frozen=True, slots=True)
class SupervisedParts:
    """What the loop drives."""

    learner: Learner
    log_step: Callable[[Mapping[str, Any]], None]
    checkpoints: Checkpoints
    evaluate: Callable[[], Awaitable[dict[str, float]]]
    """Measure the present weights on the held-out samples, as `validation/what`."""


@dataclass(frozen=True, slots=True)
class FedStep:
    """One step's samples, and where the data stands after them."""

    samples: list[TrainSample]
    state: dict[str, Any]
    counts: dict[str, Any]


class SupervisedLoop:
    """One run of the loop; `run` returns when the budget is used up or `stop` is set."""

    def __init__(self, config: Config, budget: TokenBudget, batches: SupervisedBatches, parts: SupervisedParts) -> None:
        """batches: standing at the beginning, or where `restore` is to take it."""
        self.config, self.parts = config, parts
        self.progress = SupervisedProgress()
        self.counts: dict[str, Any] = copy.deepcopy(dict(batches.counts))
        """What became of rows or documents, up to the last step that was trained."""
        self._budget, self._batches = budget, batches
        self._feed = _Feed(batches, config.learners.step_timeout_s)
        self._position = batches.state()
        self._skipped = SkippedSteps(config.failures.max_consecutive_skipped_steps, "the texts")
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
        """Train until the budget is used up; leaves a checkpoint of the last step, also when stopped.

        Where the data cannot be read on, what was trained is saved before the UserError goes on.
        """
        try:
            while not self._over() and not stop.is_set():
                await self._step(stop)
        except UserError:
            await self._save()
            raise
        finally:
            await self._feed.close()
        await self._save()

    def _over(self) -> bool:
        return self._budget.reached(self.progress.step, self.progress.tokens_trained)

    async def _step(self, stop: asyncio.Event) -> None:
        started = time.monotonic()
        fed = await self._feed.take(self.progress.step + 1)
        data_s = time.monotonic() - started
        if self.progress.step + 1 < self._budget.steps and not stop.is_set():
            self._feed.read_ahead()
        result = await self.parts.learner.train([fed.samples])
        self._count(result, fed)
        metrics = dict(result.metrics)
        step_s = time.monotonic() - started
        metrics |= {"time/step_s": step_s, "time/data_s": data_s}
        metrics["train/tokens_per_s"] = result.num_trained_tokens / step_s
        metrics["train/samples"] = float(len(fed.samples))
        metrics["train/total_tokens"] = float(self.progress.tokens_trained)
        step, every = self.progress.step, self.config.eval.every_steps
        if every and step % every == 0 and not self._over():
            metrics |= await self.parts.evaluate()
        self.parts.log_step({"step": step, "policy_version": self.progress.policy_version, **metrics})
        self._measured = metrics
        self._skipped.check()
        if step % self.config.run.checkpoint_every_steps == 0:
            await self._save()

    def _count(self, result: StepResult, fed: FedStep) -> None:
        """Count the step, and move the position that a checkpoint keeps."""
        progress = self.progress
        progress.step += 1
        progress.optimizer_steps += result.optimizer_steps
        progress.skipped_steps += result.skipped
        progress.samples_trained += len(fed.samples)
        progress.tokens_trained += result.num_trained_tokens
        self._position, self.counts = fed.state, fed.counts
        self._skipped.count(result)

    async def _save(self) -> None:
        """Checkpoint the present step once; before the first step there is nothing to keep."""
        if self.progress.step == 0 or self._saved_step == self.progress.step:
            return
        await self.parts.checkpoints.save(self.progress.step, self.state(), [], self._measured)
        self._saved_step = self.progress.step

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {
            "progress": asdict(self.progress),
            "kept": self._kept,
            "data": self._position,
            "digest": self._batches.digest,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint. Raises UserError where the data is not what it was trained on."""
        if state.get("digest") != self._batches.digest:
            raise UserError(
                f"run.resume=auto: the training data of stage={self.config.stage} is not that of the checkpoint (other "
                "files, weights, batch size, seed, held-out part or model.max_length_tokens?), so its order cannot be "
                "continued; give the old values, or choose another run.name"
            )
        self._batches.restore(state["data"])
        self.progress = SupervisedProgress(**state["progress"])
        self._position, self.counts = state["data"], copy.deepcopy(dict(self._batches.counts))
        self._kept = dict(state["kept"])
        self._saved_step = self.progress.step


class _Feed:
    """Reads the next step's samples in a thread, at most one step ahead."""

    def __init__(self, batches: SupervisedBatches, timeout_s: float) -> None:
        self._batches, self._timeout_s = batches, timeout_s
        self._task: asyncio.Task[FedStep] | None = None

    def read_ahead(self) -> None:
        """Begin to read the next step's samples, where that has not begun."""
        if self._task is None:
            self._task = asyncio.create_task(asyncio.to_thread(self._read))

    async def take(self, step: int) -> FedStep:
        """Return the next step's samples; raises what reading them raised, and WaitTimeoutError."""
        self.read_ahead()
        task = self._task
        assert task is not None
        done, _ = await asyncio.wait([task], timeout=self._timeout_s)
        if not done:
            raise WaitTimeoutError(f"the data of step {step}", self._timeout_s)
        self._task = None
        return task.result()

    async def close(self) -> None:
        """Wait for a thread that still reads: another loop may use the batches next. What it read is left."""
        task, self._task = self._task, None
        if task is None:
            return
        done, _ = await asyncio.wait([task], timeout=self._timeout_s)
        if done and not task.cancelled():
            task.exception()  # an error in data that nobody asked for yet is raised when it is asked for

    def _read(self) -> FedStep:
        samples = self._batches.next()
        return FedStep(samples, self._batches.state(), copy.deepcopy(dict(self._batches.counts)))
