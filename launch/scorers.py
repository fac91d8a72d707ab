"""The run's rewards, put together from the config: rules, the reward pool, the judge, a user's function."""

from lwz_ray.config import Config
from rewards.function import FunctionScorer
from rewards.judge import Judge
from rewards.pool import RewardPool
from rewards.scorer import RewardSet


class Scorers:
    """Everything that scores in one run."""

    def __init__(self, config: Config, pool: RewardPool | None) -> None:
        """Build what the config names; raises UserError where the judge's key or the function cannot be had."""
        self._pool = pool
        self._judge: Judge | None = None
        if config.judge.base_url is not None:
            self._judge = Judge(config.judge, config.seed, config.rewards.deadline_s["judge"])
        function = FunctionScorer(config.rewards.function) if config.rewards.function.path is not None else None
        self.rewards = RewardSet(config.rewards, pool, self._judge, function)

    async def check(self) -> None:
        """Ask the judge one small question; raises UserError where it cannot answer."""
        if self._judge is not None:
            await self._judge.check()

    def metrics(self) -> dict[str, float]:
        """Return what the scoring side counts of itself: `pool/*`, `judge/*` and retries so far."""
        out = {"rewards/retries": float(self.rewards.num_retries)}
        if self._pool is not None:
            out |= self._pool.metrics()
        return out | (self._judge.usage if self._judge is not None else {})

    async def close(self) -> None:
        """Close the judge's connections."""
        if self._judge is not None:
            await self._judge.close()
