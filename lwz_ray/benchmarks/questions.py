"""What a judge is asked about a benchmark's texts, and how its verdict is read; nothing here touches a model.

The wording is ours; scales, dimensions and who sees what are the benchmarks'. Judged texts are data: see
`lwz_ray.verdicts`. The random id that fences them stays out of `key`, so the same question has the same key in every
run.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from lwz_ray.benchmarks.longbench_write import DIMENSIONS
from lwz_ray.benchmarks.records import Criterion
from lwz_ray.verdicts import PairVerdict, judge_messages, read_verdict, score_verdict

_DIMENSIONS = {
    "relevance": "does the text do what the request asks for, on its subject and with its constraints, length aside",
    "accuracy": "is what it states true, and is what it invents consistent with itself and with the request",
    "coherence": "do its parts follow from each other and make one whole",
    "clarity": "is it said plainly and precisely, without padding or repetition",
    "breadth_and_depth": "does it cover what belongs to the subject, and go into it",
    "reading_experience": "is it good to read",
}
_LENGTH_IS_MEASURED = (
    "How long the text is gets measured elsewhere. Leave it out of every score: being long is no merit, being shorter "
    "or longer than the request asks for is no fault."
)
_PAIR_RUBRIC = """\
Which text a demanding reader who made this request would rather have: whether it does what was asked for, with all \
constraints, the length included; whether its content is sound, rich and its own; how it is built; its language and \
style. A text that repeats itself or fills space is no better for being longer."""


class Question(Protocol):
    """One request to the judge."""

    @property
    def key(self) -> str:
        """What tells this question from every other one."""
        ...

    def messages(self) -> list[dict[str, str]]:
        """Return the chat messages, with a new random id each time."""
        ...

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the verdict."""
        ...

    def read(self, reply: str) -> Any:
        """Return the verdict; raises MalformedVerdictError."""
        ...


@dataclass(frozen=True, slots=True)
class QualityQuestion:
    """LongBench-Write: six scores of one text, 1 to 5, its length left out."""

    request: str
    answer: str

    @property
    def key(self) -> str:
        return _key("quality", self._messages(""), self.schema())

    def messages(self) -> list[dict[str, str]]:
        return self._messages(None)

    def schema(self) -> dict[str, Any]:
        return self._verdict().model_json_schema()

    def read(self, reply: str) -> dict[str, int]:
        """Return the score of each of `longbench_write.DIMENSIONS`.

        >>> QualityQuestion("Write.", "Text.").read('{"reason": "r", "relevance": 5, "accuracy": 4, "coherence": 3, '
        ...     '"clarity": 2, "breadth_and_depth": 1, "reading_experience": 5}')["clarity"]
        2
        """
        found = read_verdict(self._verdict(), reply)
        return {name: found[name] for name in DIMENSIONS}

    def _messages(self, nonce: str | None) -> list[dict[str, str]]:
        names = ", ".join(f'"{name}": <integer from 1 to 5>' for name in DIMENSIONS)
        lines = "\n".join(f"- {name}: {_DIMENSIONS[name]}?" for name in DIMENSIONS)
        return judge_messages(
            what="a request and an answer",
            rubric=f"{lines}\n{_LENGTH_IS_MEASURED}",
            task="Score the answer on each of these with an integer from 1 (very poor) to 5 (excellent).",
            shape=f'{{"reason": "<a few sentences>", {names}}}',
            texts=(("REQUEST", self.request), ("ANSWER", self.answer)),
            nonce=nonce,
        )

    def _verdict(self) -> type[BaseModel]:
        return score_verdict(*DIMENSIONS, low=1, high=5)


@dataclass(frozen=True, slots=True)
class CriterionQuestion:
    """WritingBench: the score of one text on one criterion of its request, 1 to 10."""

    request: str
    answer: str
    criterion: Criterion

    @property
    def key(self) -> str:
        return _key("criterion", self._messages(""), self.schema())

    def messages(self) -> list[dict[str, str]]:
        return self._messages(None)

    def schema(self) -> dict[str, Any]:
        return self._verdict().model_json_schema()

    def read(self, reply: str) -> int:
        """Return the score."""
        return read_verdict(self._verdict(), reply)["score"]

    def _messages(self, nonce: str | None) -> list[dict[str, str]]:
        bands = "\n".join(f"{band}: {text}" for band, text in self.criterion.bands.items())
        return judge_messages(
            what="a request and an answer",
            rubric=f"{self.criterion.name}\n{self.criterion.description}\n\nWhat scores mean:\n{bands}",
            task="Score the answer on this criterion alone with an integer from 1 (worst) to 10 (best). Be strict: a "
            "score of 9 or 10 is for an answer with which you find no fault.",
            shape='{"reason": "<what in the answer decides the score>", "score": <integer from 1 to 10>}',
            texts=(("REQUEST", self.request), ("ANSWER", self.answer)),
            nonce=nonce,
        )

    def _verdict(self) -> type[BaseModel]:
        return score_verdict("score", low=1, high=10)


@dataclass(frozen=True, slots=True)
class MatchQuestion:
    """Arena-Write: which of two texts is better; the judge is told neither who wrote them nor how often it is asked."""

    request: str
    first: str
    second: str

    @property
    def key(self) -> str:
        return _key("match", self._messages(""), self.schema())

    def messages(self) -> list[dict[str, str]]:
        return self._messages(None)

    def schema(self) -> dict[str, Any]:
        return PairVerdict.model_json_schema()

    def read(self, reply: str) -> float:
        """Return the score of the first text: 1 it won, 0.5 a tie, 0 it lost."""
        return {"first": 1.0, "tie": 0.5, "second": 0.0}[read_verdict(PairVerdict, reply)["winner"]]

    def _messages(self, nonce: str | None) -> list[dict[str, str]]:
        return judge_messages(
            what="a request and two answers to it",
            rubric=_PAIR_RUBRIC,
            task="Say which of the two answers is better. Which one stands first is chance and says nothing about it. "
            "Call it a tie only where neither is better.",
            shape='{"reason": "<what decides it>", "winner": "first" or "second" or "tie"}',
            texts=(("REQUEST", self.request), ("FIRST ANSWER", self.first), ("SECOND ANSWER", self.second)),
            nonce=nonce,
        )


def _key(kind: str, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any]) -> str:
    """Return the kind and a hash of all that is asked: another text, criterion or wording is another question."""
    asked = json.dumps([*messages, schema], sort_keys=True, ensure_ascii=False)
    return f"{kind}/{hashlib.sha256(asked.encode()).hexdigest()[:32]}"
