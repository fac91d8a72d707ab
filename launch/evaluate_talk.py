"""Judging in progress: what is told of it while it goes on, and its account at the end."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from launch.evaluate_judge import judge_settings
from lwz_ray.benchmarks.judging import Judged, judge_texts
from lwz_ray.benchmarks.records import Benchmark
from lwz_ray.chat import ChatModel
from lwz_ray.config import Config
from lwz_ray.texts import WrittenText

PROGRESS_EVERY_S = 10.0
"""Between two lines of progress, but for the last."""


class Judging:
    """Asks a benchmark's questions about texts."""

    def __init__(
        self, config: Config, benchmark: Benchmark, report: Callable[[dict[str, Any], str], None], num_texts: int
    ) -> None:
        """report: told of the progress, in metrics and in words; num_texts: steps before the first question."""
        self._config, self._benchmark, self._report, self._num_texts = config, benchmark, report, num_texts
        self._told = time.monotonic()
        self._chat: ChatModel | None = None
        self.judged = Judged()

    async def run(self, texts: Sequence[WrittenText], chat: ChatModel) -> Judged:
        """Return what came of all questions. Raises UserError where the judge cannot be had any more."""
        self._chat = chat
        settings = judge_settings(self._config)
        self.judged = await judge_texts(self._benchmark, texts, self._config.run.name, chat, settings, self._progress)
        return self.judged

    def summary(self) -> dict[str, Any]:
        """Return the account so far: questions and verdicts, and what they took."""
        return {**self.judged.summary(), "usage": dict(self._chat.usage) if self._chat else {}}

    def _progress(self, judged: Judged) -> None:
        self.judged = judged
        last = judged.num_done == judged.num_questions
        if not last and time.monotonic() - self._told < PROGRESS_EVERY_S:
            return
        self._told = time.monotonic()
        assert self._chat is not None
        usage, failed = self._chat.usage, judged.failed.total()
        metrics = {
            "step": self._num_texts + judged.num_done,
            "policy_version": 0,
            "evaluate/questions": judged.num_done,
            "evaluate/failed": failed,
            "evaluate/redrawn": judged.num_redrawn,
            "evaluate/cached": usage.get("cached", 0.0),
        }
        words = f"judged {judged.num_done}/{judged.num_questions} · {failed} without a verdict"
        if "cost" in usage:
            metrics["evaluate/cost"] = usage["cost"]
            words += f" · cost {usage['cost']:,.2f}"
        self._report(metrics, words)
