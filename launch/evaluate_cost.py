"""What judging will ask for, before it is asked: calls, tokens, money."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lwz_ray.benchmarks.judging import estimate, judge_tasks
from lwz_ray.benchmarks.records import Benchmark
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.texts import WrittenText

BYTES_PER_TOKEN = 3
"""Of UTF-8: about a Chinese character, and fewer than an English token has, so that estimates are high."""
BYTES_PER_WRITTEN_TOKEN = 5
"""Of a text that is still to be written, at most: what passes evaluate.max_cost unwritten passes it written too."""


@dataclass(frozen=True, slots=True)
class JudgingEstimate:
    """What one attempt at every question takes; questions whose reply cannot be read are asked again on top."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    """At most: every reply as long as it may be."""
    cost: float | None
    """In the currency of judge.price_*; None where no prices are given."""
    texts_known: bool
    """False: every text is taken for as long as sampling.max_tokens."""

    @property
    def words(self) -> str:
        """Return the estimate in one line."""
        cost = "" if self.cost is None else f", cost about {self.cost:,.2f}"
        how = "" if self.texts_known else "; texts taken at their limit"
        return (
            f"judge: {self.calls:,} calls, about {self.prompt_tokens:,} prompt tokens, at most "
            f"{self.completion_tokens:,} completion tokens{cost} (calls that are cached cost nothing{how})"
        )


def has_judge(config: Config) -> bool:
    """Say whether anybody judges."""
    return config.evaluate.judge_path is not None or config.judge.base_url is not None


def estimate_judging(
    config: Config, benchmark: Benchmark, texts: Sequence[WrittenText] | None = None
) -> JudgingEstimate:
    """Estimate the judging of `texts`, or of texts that are not written yet.

    LongBench-Write asks once a text, WritingBench once a criterion, Arena-Write twice a baseline. Tokens are taken
    from the UTF-8 bytes of what is sent; an unwritten text is taken for BYTES_PER_WRITTEN_TOKEN times
    sampling.max_tokens of them.
    """
    if texts is None:
        limit, samples = config.sampling.max_tokens, config.evaluate.samples_per_request
        longest = math.ceil(limit * BYTES_PER_WRITTEN_TOKEN / BYTES_PER_TOKEN)
        found = estimate(benchmark, samples, lambda request_id: longest, config.judge.max_tokens, _tokens)
        return _priced(config, found.questions, found.prompt_tokens, texts_known=False)
    calls = prompt_tokens = 0
    for task in judge_tasks(benchmark, texts, config.run.name):
        calls += 1
        prompt_tokens += sum(_tokens(message["content"]) for message in task.question.messages())
    return _priced(config, calls, prompt_tokens, texts_known=True)


def check_cost(config: Config, estimate: JudgingEstimate) -> None:
    """Raise UserError where the estimated cost is above `evaluate.max_cost`."""
    limit = config.evaluate.max_cost
    if limit is not None and estimate.cost is not None and estimate.cost > limit:
        raise UserError(
            f"evaluate.max_cost={limit:g}, but judging would cost about {estimate.cost:,.2f} ({estimate.calls:,} "
            f"calls, {estimate.prompt_tokens:,} prompt tokens): raise it, or lower benchmark.num_requests or "
            "evaluate.samples_per_request"
        )


def _priced(config: Config, calls: int, prompt_tokens: int, texts_known: bool) -> JudgingEstimate:
    judge = config.judge
    completion_tokens = calls * judge.max_tokens
    cost = None
    if config.evaluate.judge_path is None and judge.price_input is not None and judge.price_output is not None:
        cost = (prompt_tokens * judge.price_input + completion_tokens * judge.price_output) / 1e6
    return JudgingEstimate(calls, prompt_tokens, completion_tokens, cost, texts_known)


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
