"""One training step on a batch of scored groups: what is known of each token, what it earned, what is learned from it.

    groups ─▶ annotate ─────────────▶ credit ─────────▶ minibatches ─▶ train policy
              old, ref logprobs        advantages                   └▶ train critic
              critic: values           critic: returns

Policy and critic work side by side. While the critic warms up it trains alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lwz_ray.batching import minibatches_of, unlabelled_sample
from lwz_ray.concurrency import together
from lwz_ray.config import Config
from lwz_ray.credit import assign_credit, credit_metrics
from lwz_ray.protocols import Learner
from lwz_ray.records import Group, StepResult, TokenFacts, TrainSample
from lwz_ray.skipped_steps import SkippedSteps

WARMING_UP = StepResult({}, optimizer_steps=0, skipped=0, num_trained_tokens=0)
"""What the policy reports while the critic trains alone."""


@dataclass(frozen=True, slots=True)
class Update:
    """What a training step did."""

    result: StepResult
    """The policy's, with the critic's metrics beside its own."""
    advantages: list[float]
    """Of every sample, in the groups' order: the mean over its tokens."""


class PolicyUpdate:
    """Trains the policy, and the critic where there is one, on one batch after the other."""

    def __init__(self, config: Config, learner: Learner, critic: Learner | None) -> None:
        if config.algorithm.uses_critic != (critic is not None):
            there = "no critic" if critic is None else "a critic"
            raise ValueError(f"algorithm.advantage={config.algorithm.advantage} with {there}")
        self._config, self._learner, self._critic = config, learner, critic
        cap = config.failures.max_consecutive_skipped_steps
        self._policy_steps = SkippedSteps(cap, "the last samples")
        self._critic_steps = SkippedSteps(cap, "the critic, whose rate is critic.lr")

    async def take(self, groups: Sequence[Group], step: int, policy_version: int) -> Update:
        """Train on a batch. step: training steps done; policy_version: the one being trained."""
        config = self._config
        facts = await self._annotate(groups) if config.algorithm.needs_annotation else None
        credits = assign_credit(groups, facts, config)
        minibatches = minibatches_of(
            groups, credits, facts, config.algorithm, config.sampling.max_tokens, policy_version
        )
        result = await self._train(minibatches, step)
        result = replace(result, metrics={**result.metrics, **credit_metrics(groups, facts, config)})
        return Update(result, [c.mean_advantage for row in credits for c in row])

    def check(self) -> None:
        """Raise BudgetExceededError after too many optimizer steps in a row that were not finite."""
        self._policy_steps.check()
        self._critic_steps.check()

    async def refresh_reference(self, step: int) -> None:
        """Make the present policy the reference, every `reference_refresh_steps` steps. step: training steps done."""
        algorithm = self._config.algorithm
        due = algorithm.reference_refresh_steps and step % algorithm.reference_refresh_steps == 0
        if algorithm.uses_reference and due:
            await self._learner.refresh_reference()

    async def _annotate(self, groups: Sequence[Group]) -> list[list[TokenFacts]]:
        """Return [group][sample] facts, of the policy and of the critic, from before the batch's first step."""
        samples = [unlabelled_sample(s) for g in groups for s in g.samples]
        learners = [self._learner] if self._critic is None else [self._learner, self._critic]
        found = await together([learner.annotate(samples) for learner in learners])
        facts = found[0]
        if self._critic is not None:
            facts = [replace(f, values=v.values) for f, v in zip(facts, found[1], strict=True)]
        rest = iter(facts)
        return [[next(rest) for _ in g.samples] for g in groups]

    async def _train(self, minibatches: list[list[TrainSample]], step: int) -> StepResult:
        if self._critic is None:
            result = await self._learner.train(minibatches)
            self._policy_steps.count(result)
            return result
        if step < self._config.critic.warmup_steps:
            result, critic = WARMING_UP, await self._critic.train(minibatches)
        else:
            result, critic = await together([self._learner.train(minibatches), self._critic.train(minibatches)])
            self._policy_steps.count(result)
        self._critic_steps.count(critic)
        return replace(result, metrics={**result.metrics, **_critic_metrics(critic)})


def _critic_metrics(result: StepResult) -> dict[str, float]:
    """Return `critic/what` for each `train/what` of the critic's own, and its time."""
    out = {}
    for key, value in result.metrics.items():
        stage, _, what = key.partition("/")
        out["time/critic_s" if key == "time/train_s" else f"critic/{what}" if stage == "train" else key] = value
    return out
