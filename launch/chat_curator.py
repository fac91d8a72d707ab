"""The work of `recipe=chat_logs`: sift rows, ask a model about what is left, keep what is decided."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from launch.chat_curate_store import ChatCurateStore, Decided
from launch.chat_logs_counts import contamination, decided_counts, sieve_counts
from lwz_ray.chat import ChatFailedError, ChatModel
from lwz_ray.chat_logs_sieve import Candidate, LeftOut, LogSieve
from lwz_ray.concurrency import together
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.overlap import Overlap, read_benchmarks
from lwz_ray.range_rules import Limits, Question, need_question, range_question
from lwz_ray.ranges import read_length_range
from lwz_ray.verdicts import MalformedVerdictError

ROWS_AT_ONCE = 200
"""Rows between two looks at whether the run was asked to stop."""
SAYS_EVERY_ROWS = 10_000
PROGRESS_EVERY = 16
"""Requests decided between two lines of progress."""
EXAMPLES = 3
"""Requests shown for each outcome, the first in order."""
EXCERPT = 400
"""Characters of a request that is shown though it was left out."""
MAX_FAILED_IN_A_ROW = 8
"""Requests left without any reply, one after the other; then whoever is asked is taken for gone."""
BYTES_PER_TOKEN = 3
"""Of UTF-8, for estimates that are high: about a Chinese character, fewer than an English token has."""

Report = Callable[[dict[str, Any], str], None]
"""Takes one line of metrics and the same in words."""


class ChatCurator:
    """Makes the requests of one config; `sieve` first, then `ask` where `num_missing` is above 0, then `publish`."""

    def __init__(self, config: Config, store: ChatCurateStore, report: Report, say: Callable[[str], None]) -> None:
        self._config, self._logs, self._store = config, config.curate.chat_logs, store
        self._limits = Limits.of(self._logs)
        self._report, self._say = report, say
        self._counts: dict[str, Any] = {}
        self._decided: dict[str, Decided] = {}
        self._outcomes: Counter[str] = Counter()
        self._unreadable = 0
        self._chat: ChatModel | None = None
        self._failed: Counter[str] = Counter()
        self._failed_in_a_row = 0
        self._began = time.monotonic()

    @property
    def num_decided(self) -> int:
        return len(self._decided)

    @property
    def num_kept(self) -> int:
        return self._outcomes["kept"]

    @property
    def lost(self) -> str:
        """How many requests are not kept by outcome, in words."""
        counts = (self._outcomes + self._failed).most_common()
        return ", ".join(f"{number} {name}" for name, number in counts if name != "kept")

    @property
    def num_missing(self) -> int:
        """Candidates that nothing is decided about yet."""
        return self._counts["rows"]["candidates"] - len(self._decided)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model wrote, in this attempt."""
        return 0 if self._chat is None else int(self._chat.usage["completion_tokens"])

    async def sieve(self) -> None:
        """Go through every row, or read what an earlier attempt found; raises UserError where nothing is left."""
        found = self._store.read_sieve()
        if found is None:
            found = await self._sift()
        self._counts = found
        self._store.write_contamination(found["contamination"] if self._logs.benchmarks else None)
        for decided in self._store.read_decided().values():
            self._take(decided)
        rows = found["rows"]
        lost = ", ".join(f"{n} {name}" for name, n in rows.items() if n and name not in ("read", "candidates"))
        words = f"{rows['candidates']} of {rows['read']} rows to be asked about" + (f" ({lost})" if lost else "")
        self._report({**self._metrics(), "step": self.num_decided}, words)
        if not rows["candidates"]:
            raise UserError(
                f"curate.chat_logs.paths: no request is left of {rows['read']} rows ({lost or 'they are empty'}); see "
                "curate.chat_logs.languages and data.languages, or name other logs"
            )

    async def _sift(self) -> dict[str, Any]:
        sieve = LogSieve(
            self._config,
            Overlap(read_benchmarks(self._logs.benchmarks), self._logs.overlap_ngram, self._logs.overlap_share),
        )
        examples: dict[str, list[dict[str, Any]]] = {}
        with self._store.new_candidates() as write:
            for number, found in enumerate(sieve.rows(), start=1):
                if isinstance(found, Candidate):
                    write(found)
                else:
                    _keep_example(examples, found)
                if number % ROWS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                if number % SAYS_EVERY_ROWS == 0:
                    self._say(f"{number} rows read, {sum(c['candidates'] for c in sieve.counts.values())} left")
        found = {**sieve_counts(sieve), "contamination": contamination(sieve), "examples": examples}
        self._store.finish_sieve(found)
        return found

    async def estimate(self) -> str:
        """Say what asking about the missing candidates takes at most, without replies that must be asked for again."""
        calls = num_bytes = 0
        for number, candidate in enumerate(self._missing(), start=1):
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            questions = [need_question(candidate.prompt, self._limits)]
            if read_length_range(candidate.prompt) is None:
                questions.append(range_question(candidate.prompt, self._limits))
            calls += len(questions)
            num_bytes += sum(question.num_bytes for question in questions)
        prompt_tokens, judge = num_bytes // BYTES_PER_TOKEN, self._config.judge
        words = f"at most {calls:,} calls with about {prompt_tokens:,} prompt tokens"
        if self._logs.asked == "endpoint" and judge.price_input is not None and judge.price_output is not None:
            most = prompt_tokens * judge.price_input + calls * self._logs.max_reply_tokens * judge.price_output
            words += f", cost at most about {most / 1e6:,.2f}"
        return words

    async def ask(self, chat: ChatModel, at_once: int) -> None:
        """Decide about every candidate that is missing, `at_once` at a time.

        Raises UserError where whoever is asked refuses, or has left MAX_FAILED_IN_A_ROW requests without a reply.
        """
        self._chat, self._began = chat, time.monotonic()
        waiting = self._missing()

        async def work() -> None:
            for candidate in waiting:  # shared by all: each takes the next that nobody has taken
                await self._settle(candidate, chat)

        await together([work() for _ in range(min(at_once, self.num_missing))])
        if self.num_missing:  # left without a reply: `_progress` has not told of the last ones that were decided
            self._tell()

    def publish(self) -> None:
        """Write the requests in the order of the rows."""
        self._store.publish(
            {**candidate.as_dict(), "length_range": found.length_range, "range_from": found.range_from}
            for candidate, found in self._pairs()
            if found.outcome == "kept"
        )

    def examples(self) -> list[dict[str, Any]]:
        """Return the first requests of each outcome, as lines of samples.jsonl without their step."""
        seen: Counter[str] = Counter()
        lines = []
        for candidate, found in self._pairs():
            seen[found.outcome] += 1
            if seen[found.outcome] <= EXAMPLES:
                lines.append({"split": "curated", **candidate.as_dict(), **asdict(found)})
        for reason, rows in self._counts["examples"].items():
            lines += [{"split": "curated", "outcome": reason, **row} for row in rows]
        return lines

    def summary(self) -> dict[str, Any]:
        """Return the `curate` part of `summary.json`, as far as the work has come."""
        if not self._counts:
            return {"recipe": "chat_logs"}
        usage = {} if self._chat is None else {"model": self._chat.name, **self._chat.usage}
        return {
            "recipe": "chat_logs",
            "rows": self._counts["rows"],
            "sources": self._counts["sources"],
            "contamination": self._counts["contamination"]["benchmarks"],
            **decided_counts(self._pairs()),
            "without_reply": dict(self._failed),
            "asked": usage,
        }

    async def _settle(self, candidate: Candidate, chat: ChatModel) -> None:
        """Decide about one candidate and keep it; one without a reply is counted, and left to the next attempt."""
        try:
            decided = await self._decide(candidate, chat)
        except ChatFailedError as error:
            if error.blame == "data":
                decided = Decided(candidate.id, "refused", None, None, f"{error.reason}: {error}", 0)
            else:
                self._count_failed(error)
                return
        self._failed_in_a_row = 0
        self._store.add_decided(decided)
        self._take(decided)
        self._progress()

    def _take(self, decided: Decided) -> None:
        self._decided[decided.id] = decided
        self._outcomes[decided.outcome] += 1
        self._unreadable += decided.unreadable

    async def _decide(self, candidate: Candidate, chat: ChatModel) -> Decided:
        need, unreadable = await self._answer(need_question(candidate.prompt, self._limits), chat)
        if isinstance(need, str):
            return Decided(candidate.id, "unreadable", None, None, need, unreadable)
        if not need["needed"]:
            return Decided(candidate.id, "not_needed", None, None, need["reason"], unreadable)
        stated = read_length_range(candidate.prompt)
        if stated is not None:
            found, why, range_from = stated, "its length is stated", "request"
        else:
            reply, more = await self._answer(range_question(candidate.prompt, self._limits), chat)
            unreadable += more
            if isinstance(reply, str):
                return Decided(candidate.id, "unreadable", None, None, reply, unreadable)
            (low, high), why, range_from = reply["range"], reply["reason"], "model"
            found = (low, high)
        outcome = self._limits.outcome(*found)
        if outcome != "kept":
            return Decided(candidate.id, outcome, None, None, f"{list(found)}: {why}", unreadable)
        return Decided(candidate.id, outcome, found, range_from, why, unreadable)

    async def _answer(self, question: Question, chat: ChatModel) -> tuple[dict[str, Any] | str, int]:
        """Return the verdict, or what was wrong with the last reply, and how many replies could not be read."""
        problem = ""
        for attempt in range(self._logs.max_attempts):
            reply = await chat.reply(question.ask(attempt, self._config.seed, self._logs.max_reply_tokens))
            try:
                return question.read(reply), attempt
            except MalformedVerdictError as error:
                problem = f"{question.kind}: {error}"
        return problem, self._logs.max_attempts

    def _count_failed(self, error: ChatFailedError) -> None:
        self._failed[error.reason] += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILED_IN_A_ROW:
            raise UserError(
                f"{self._failed_in_a_row} requests in a row were left without a reply, the last one because of "
                f"{error}; go on with run.resume=auto: what is decided is kept"
            ) from error

    def _missing(self) -> Iterator[Candidate]:
        return (candidate for candidate in self._store.candidates() if candidate.id not in self._decided)

    def _pairs(self) -> Iterator[tuple[Candidate, Decided]]:
        found = ((candidate, self._decided.get(candidate.id)) for candidate in self._store.candidates())
        return ((candidate, decided) for candidate, decided in found if decided is not None)

    def _progress(self) -> None:
        if self.num_decided % PROGRESS_EVERY == 0 or not self.num_missing:
            self._tell()

    def _tell(self) -> None:
        metrics = self._metrics()
        words = (
            f"{self.num_decided}/{self._counts['rows']['candidates']} requests decided · {self.num_kept} kept · "
            f"{metrics['curate/unreadable']} unreadable replies · {metrics['curate/tokens_per_s']:.0f} tokens/s"
        )
        self._report({**metrics, "step": self.num_decided}, words)

    def _metrics(self) -> dict[str, Any]:
        rows = self._counts["rows"]
        return {
            "policy_version": 0,
            "curate/rows": rows["read"],
            "curate/candidates": rows["candidates"],
            "curate/decided": self.num_decided,
            "curate/requests": self.num_kept,
            "curate/unreadable": self._unreadable,
            "curate/tokens": self.num_tokens,
            "curate/tokens_per_s": self.num_tokens / max(time.monotonic() - self._began, 1e-9),
        }


def _keep_example(examples: dict[str, list[dict[str, Any]]], found: LeftOut) -> None:
    rows = examples.setdefault(found.reason, [])
    if len(rows) >= EXAMPLES:
        return
    # What the data flags as unsafe or personal is not spread further.
    prompt = None if found.prompt is None or found.reason == "flagged" else found.prompt[:EXCERPT]
    rows.append({"source": found.source, "place": found.place, "prompt": prompt, "why": found.about})
