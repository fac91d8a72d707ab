"""Held-out evaluation with the rooms of the run: the same prompts and seeds each time, so that differences pair."""

from collections.abc import Sequence

from lwz_ray.concurrency import together
from lwz_ray.config import Config
from lwz_ray.evaluation import EvalSummary, summarise_evaluation
from lwz_ray.failures import FailureLog
from lwz_ray.grouping import GroupMaker, group_seed
from lwz_ray.records import Group, Prompt
from lwz_ray.watch import drift


class Evaluator:
    """Generates and scores every held-out prompt."""

    def __init__(self, config: Config, maker: GroupMaker, prompts: Sequence[Prompt], failures: FailureLog) -> None:
        """failures: once one of its budgets is exceeded, nobody replaces what is lost, and `run` ends."""
        self._config, self._failures = config, failures
        self._maker = maker
        self._prompts = list(prompts)
        self.before: EvalSummary | None = None
        """The evaluation before training, which drift is measured against."""

    async def run(self) -> tuple[EvalSummary, list[Group]]:
        """Return the numbers and the groups in prompt order; raises BudgetExceededError, or what a group failed of."""
        config = self._config
        makes = [
            self._maker.make(prompt, i, config.eval.samples_per_prompt, group_seed(config.seed, 1, i))
            for i, prompt in enumerate(self._prompts)
        ]
        made = await self._failures.guard(together(makes))
        groups = [m.group for m in made]
        weights: dict[str, float] = {**config.rewards.weights}
        return summarise_evaluation(groups, config.rewards.active, weights), groups

    async def numbers(self, step: int) -> dict[str, float]:
        """Return the means alone, for a point of the curve at `step`."""
        summary, _ = await self.run()
        return summary.numbers | self.drift(summary)

    def drift(self, now: EvalSummary) -> dict[str, float]:
        """Return `drift`: the writing score's rise beyond the second scorer's; nothing where there is none."""
        second = self._config.watch.second_scorer
        value = drift(self.before, now, second) if second and self.before else None
        return {} if value is None else {"drift": value}
