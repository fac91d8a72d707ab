"""The loop's parts in one process: a bigram policy that is really sampled, scored, trained, published and saved."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.dispatch import DispatchSettings
from actors.engine import EngineSettings
from actors.pool import RolloutPool
from actors.repetition_stop import RepetitionRule
from actors.streams import CompletionStream
from actors.tiny_engine import TinyEngine
from actors.worker import RolloutWorker
from launch.checkpoints import CheckpointStore
from launch.compose import compose
from learners.critic_objective import CriticObjective
from learners.policy_objective import PolicyObjective
from lwz_ray.config import Config
from lwz_ray.errors import RewardFailure
from lwz_ray.failures import FailureLog
from lwz_ray.grouping import GroupMaker, group_seed
from lwz_ray.loop import Parts, TrainingLoop
from lwz_ray.protocols import GroupScoring, Rollouts, Scorer
from lwz_ray.records import Prompt, RolloutRequest, Sample
from lwz_ray.staging import StagingFolder
from lwz_ray.weights import pack_buckets
from rewards.scorer import RewardSet
from tests.table_learner import VOCABULARY, BigramModel, BigramValues, TableLearner

PROMPT_TOKEN = 7
PROMPTS = [Prompt(f"p{i}", f"Write {i}.", "en", (1, 3), i) for i in range(4)]


def make_config(folder: Path, **changes: Any) -> Config:
    """Return the smoke preset with small numbers; `section={"field": value}` changes fields of a section."""
    tree = compose(["run=smoke_cpu", f"run.dir={folder}"]).model_dump()
    small: dict[str, Any] = {
        "steps": 4,
        "groups_per_step": 2,
        "group_size": 4,
        "max_staleness": 0,
        "sampling": {"max_tokens": 8, "temperature": 0.9},
        "template": {"arm": "direct", "prefill": "<answer>"},
        "run": {"checkpoint_every_steps": 100, "keep_checkpoints": 50},
        "actors": {"request_timeout_s": 5.0},
        "rewards": {"request_timeout_s": 5.0, "weights": {"length": 1.0, "writing": 0.0, "format": 1.0}},
    }
    for layer in (small, changes):
        for key, value in layer.items():
            tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return Config.model_validate(tree)


class WordEncoder:
    """A prompt is two tokens; the policy continues from PROMPT_TOKEN."""

    def encode(self, prompt: Prompt) -> np.ndarray:
        return np.array([1 + prompt.index % 4, PROMPT_TOKEN], dtype=np.int32)


@dataclass
class StagedSync:
    """Stages buckets as the learners' host does, and loads them into the engine."""

    learner: TableLearner
    worker: RolloutWorker
    staging: StagingFolder
    published: list[int] = field(default_factory=list)
    on_stage: Callable[[int], None] = lambda version: None
    load_until: Callable[[], bool] = lambda: True
    """A load begins no earlier than this holds."""
    _paths: list[str] = field(default_factory=list)

    async def stage(self, policy_version: int) -> dict[str, float]:
        self.on_stage(policy_version)
        weights = [(TinyEngine.TENSOR, self.learner.logits.detach())]
        self._paths = [self.staging.write(b) for b in pack_buckets(weights, policy_version, 1000)]
        return {"weights/stage_s": 0.25}

    async def load(self, policy_version: int) -> dict[str, float]:
        await until(self.load_until)
        pause_s = await self.worker.update(policy_version, self._paths, 5.0)
        self.staging.clear()
        self.published.append(policy_version)
        return {"weights/pause_s": pause_s}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for plain state that sets no event."""
    while not condition():  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.001)


@dataclass
class Records:
    """Keeps what the loop reports, and checks the account at every step."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    group_ids: list[list[int]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    on_step: Callable[[int], None] = lambda step: None
    on_samples: Callable[[Sequence[Sample]], None] = lambda samples: None

    def log_step(self, metrics: dict[str, Any]) -> None:
        parts = [metrics[f"groups/{k}"] for k in ("trained", "dropped", "in_flight")]
        assert metrics["groups/admitted"] == sum(parts)
        self.steps.append(metrics)
        self.on_step(metrics["step"])

    def log_samples(self, samples: Sequence[Sample], advantages: Sequence[float], step: int, split: str) -> None:
        assert len(samples) == len(advantages) and split == "train"
        self.group_ids.append(sorted({s.group_id for s in samples}))
        self.samples.extend(samples)
        self.on_samples(samples)

    def column(self, key: str) -> list[Any]:
        return [m[key] for m in self.steps]


class FailingScorer:
    """Scores with the real rewards; in the given groups (counted from 0 as they finish) the length reward fails."""

    def __init__(self, config: Config, fails: Callable[[int], bool]) -> None:
        self._rewards, self._fails, self._finished = RewardSet(config.rewards), fails, 0

    def open(self, prompt: Prompt, num_samples: int) -> "FailingScoring":
        return FailingScoring(self._rewards.open(prompt, num_samples), self._fails_now)

    def _fails_now(self) -> bool:
        self._finished += 1
        return self._fails(self._finished - 1)


class FailingScoring:
    """One group of `FailingScorer`."""

    def __init__(self, inner: GroupScoring, fails_now: Callable[[], bool]) -> None:
        self._inner, self._fails_now = inner, fails_now
        self.add, self.cancel = inner.add, inner.cancel

    async def finish(self) -> list[Sample]:
        scored = await self._inner.finish()
        if not self._fails_now():
            return scored
        failure = RewardFailure("length", "the counter broke", "infrastructure")
        return [replace(s, rewards=s.rewards | {"length": failure}) for s in scored]


class SlowRollouts:
    """Holds the finished completions of one group back until `release` is set."""

    def __init__(self, inner: Rollouts, seed: int, group_id: int) -> None:
        self._inner, self._seed = inner, group_seed(seed, 0, group_id)
        self.release = asyncio.Event()

    async def stream(self, request: RolloutRequest) -> CompletionStream:
        stream = self._inner.stream(request)
        ended = [item async for item in stream]
        if request.seed == self._seed:
            await asyncio.wait_for(self.release.wait(), 5.0)
        for item in ended:
            yield item


def hold_group(config: Config, group_id: int) -> tuple[list[SlowRollouts], Callable[[Rollouts], SlowRollouts]]:
    """Return a list that gets the rollouts which hold one group back, and what makes them."""
    slow: list[SlowRollouts] = []

    def wrap(inner: Rollouts) -> SlowRollouts:
        slow.append(SlowRollouts(inner, config.seed, group_id))
        return slow[0]

    return slow, wrap


class FailingRollouts:
    """Raises in the groups, counted from 0 as they are asked for, that `error` returns one for."""

    def __init__(self, inner: Rollouts, error: Callable[[int], Exception | None]) -> None:
        self._inner, self._error, self._asked = inner, error, 0

    @classmethod
    def of(cls, error: Callable[[int], Exception | None]) -> Callable[[Rollouts], Rollouts]:
        return lambda inner: cls(inner, error)

    async def stream(self, request: RolloutRequest) -> CompletionStream:
        self._asked += 1
        if error := self._error(self._asked - 1):
            raise error
        async for item in self._inner.stream(request):
            yield item


@dataclass
class System:
    """Everything that a test looks at."""

    config: Config
    loop: TrainingLoop
    learner: TableLearner
    critic: TableLearner | None
    worker: RolloutWorker
    weights: StagedSync
    records: Records
    store: CheckpointStore
    evaluated: list[int]
    failures: FailureLog

    def buffered(self) -> list[int]:
        """Return the groups that are ready and not taken."""
        making = self.loop.state()["making"]
        return [i for i in self.loop.ledger.open_groups if i not in making]

    async def publish(self) -> None:
        """Give the engine the learner's weights, as whoever goes back to a checkpoint does."""
        await self.weights.stage(self.loop.progress.policy_version)
        await self.weights.load(self.loop.progress.policy_version)

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Run the loop, never longer than a test may take."""
        await asyncio.wait_for(self.loop.run(stop or asyncio.Event()), 20.0)


async def make_system(
    config: Config,
    scorer: Scorer | None = None,
    engine: type[TinyEngine] = TinyEngine,
    rollouts: Callable[[Rollouts], Rollouts] = lambda r: r,
    lr: float = 0.3,
    failures: FailureLog | None = None,
) -> System:
    """Return a started system whose files lie below `config.run.dir`."""
    folder = Path(config.run.dir)
    loops = config.actors.repetition_stop
    rule = RepetitionRule(
        loops.max_pattern_tokens, loops.min_repeats, loops.min_looping_tokens, loops.check_every_tokens
    )
    settings = EngineSettings(
        model_path="", dtype="float32", max_length_tokens=64, max_num_seqs=8, top_p=1.0,
        temperature=config.sampling.temperature, max_tokens=config.sampling.max_tokens, stop="</answer>",
        repetition_stop=rule if loops.enabled else None,
    )  # fmt: skip
    worker = RolloutWorker(engine(settings, torch.zeros(VOCABULARY, VOCABULARY)), (str(folder),), 1000)
    await worker.start()
    learner = TableLearner(BigramModel(), PolicyObjective(config.algorithm, config.sampling.temperature), lr)
    critic = None
    if config.algorithm.uses_critic:
        critic = TableLearner(BigramValues(), CriticObjective(config.critic.value_clip), lr)
    pool = RolloutPool(config.actors.request_timeout_s, DispatchSettings.of(config))
    pool.add_worker("rollout-0", worker.stream)
    encoder: Any = WordEncoder()
    maker = GroupMaker(rollouts(pool), scorer or RewardSet(config.rewards), encoder, config.template)
    weights = StagedSync(learner, worker, StagingFolder((str(folder),), 1000))
    records, evaluated = Records(), []
    store = CheckpointStore(folder / "checkpoints", {"model": "bigram"}, config.run, 20.0)
    store.attach(learner, critic)

    async def evaluate(step: int) -> dict[str, float]:
        evaluated.append(step)
        return {"total": 0.5}

    failures = failures or FailureLog({})
    parts = Parts(maker, learner, weights, records, store, evaluate, critic=critic, failures=failures)
    loop = TrainingLoop(config, PROMPTS, parts)
    return System(config, loop, learner, critic, worker, weights, records, store, evaluated, failures)
