"""What happens when a reward cannot be computed: retry, abstain, drop the group, or fail the run; each with a cap."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from lwz_ray.config import OnFailure, RewardsConfig
from lwz_ray.errors import InfrastructureError, RewardFailure, WaitTimeoutError
from lwz_ray.records import Prompt, Sample
from rewards.components import Component, Score


class Guard:
    """Stands around one component: deadline, retries, and the policy for what still fails.

    A failure becomes a RewardFailure value whose `action` the loop follows; it is never a number. Failures of the
    infrastructure are worth another attempt; failures of the data (a request without a range) are not.
    """

    def __init__(self, component: Component, config: RewardsConfig) -> None:
        self.component = component
        self._config = config
        self.num_retries = 0
        """Attempts after the first so far."""
        self._policies: dict[str, OnFailure] = {**config.on_failure}
        self._in_a_row: dict[str, int] = {}

    async def score(self, prompt: Prompt, samples: Sequence[Sample]) -> list[Score]:
        """Return one score a sample, within the component's deadline.

        Raises InfrastructureError where the policy is `fail` or too many in a row failed, and UserError as it comes.
        """
        deadlines: dict[str, float] = {**self._config.deadline_s}
        deadline_s = min(deadlines[name] for name in self.component.rewards)
        ends = time.monotonic() + deadline_s
        attempt, wait_s = 0, self._config.retry_wait_s
        while True:
            scores = await self._attempt(prompt, samples, ends, deadline_s)
            again = self._worth_another(scores) and attempt < self._config.max_retries
            if not again or time.monotonic() + wait_s >= ends:
                return [self._settle(score) for score in scores]
            await asyncio.sleep(wait_s)
            attempt, wait_s = attempt + 1, wait_s * 2
            self.num_retries += 1

    async def _attempt(self, prompt: Prompt, samples: Sequence[Sample], ends: float, deadline_s: float) -> list[Score]:
        names = self.component.rewards
        try:
            left = max(0.0, ends - time.monotonic())
            return await asyncio.wait_for(self.component.score(prompt, samples), left)
        except TimeoutError:
            what = f"the {' and '.join(names)} reward of {_which(samples)} of prompt {prompt.prompt_id}"
            reason = str(WaitTimeoutError(what, deadline_s))
        except InfrastructureError as error:
            reason = str(error)
        return [Score({n: RewardFailure(n, reason, "infrastructure") for n in names}) for _ in samples]

    def _worth_another(self, scores: Sequence[Score]) -> bool:
        failures = [v for s in scores for v in s.values.values() if isinstance(v, RewardFailure)]
        return any(f.blame == "infrastructure" and self._policies[f.component] == "retry" for f in failures)

    def _settle(self, score: Score) -> Score:
        """Give each failure its action; count those in a row."""
        values = dict(score.values)
        for name, value in score.values.items():
            if not isinstance(value, RewardFailure):
                self._in_a_row[name] = 0
                continue
            policy = self._policies[name]
            self._in_a_row[name] = self._in_a_row.get(name, 0) + 1
            if policy == "fail":
                raise InfrastructureError(f"the {name} reward failed (rewards.on_failure.{name}=fail): {value.reason}")
            cap = self._config.max_failures_in_a_row
            if self._in_a_row[name] >= cap:
                raise InfrastructureError(
                    f"the {name} reward failed {cap} times in a row (rewards.max_failures_in_a_row), "
                    f"the last time: {value.reason}"
                )
            action: Literal["abstain", "drop_group"] = "abstain" if policy == "abstain" else "drop_group"
            values[name] = replace(value, action=action)
        return Score(values, score.measures)


def _which(samples: Sequence[Sample]) -> str:
    return f"sample {samples[0].sample_index}" if len(samples) == 1 else f"{len(samples)} samples"
