"""What a judge is asked about answers, and how its verdict becomes a value; the rest is in `lwz_ray.verdicts`.

Nothing here touches the network.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from lwz_ray.verdicts import PairVerdict, judge_messages, read_verdict, score_verdict

_WINS = {"first": 1.0, "tie": 0.5, "second": 0.0}


class Question(Protocol):
    """One request to the judge, and how its reply is read."""

    def messages(self) -> list[dict[str, str]]:
        """Return the chat messages, with a new random id each time."""
        ...

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the verdict."""
        ...

    def read(self, reply: str) -> float:
        """Return a value in [0, 1]; raises MalformedVerdictError."""
        ...


@dataclass(frozen=True, slots=True)
class PointwiseQuestion:
    """One answer, one score on a scale, mapped to [0, 1].

    >>> PointwiseQuestion("Is it kind?", (1, 5), "Greet me.", "Hello!").read('{"reason": "kind", "score": 4}')
    0.75
    """

    rubric: str
    scale: tuple[int, int]
    request: str
    answer: str

    def messages(self) -> list[dict[str, str]]:
        low, high = self.scale
        return judge_messages(
            what="a request and an answer",
            rubric=self.rubric,
            task=f"Score the answer to the request with an integer from {low} (worst) to {high} (best).",
            shape=f'{{"reason": "<one or two sentences>", "score": <integer from {low} to {high}>}}',
            texts=(("REQUEST", self.request), ("ANSWER", self.answer)),
        )

    def schema(self) -> dict[str, Any]:
        return self._verdict().model_json_schema()

    def read(self, reply: str) -> float:
        low, high = self.scale
        return (read_verdict(self._verdict(), reply)["score"] - low) / (high - low)

    def _verdict(self) -> type[BaseModel]:
        low, high = self.scale
        return score_verdict("score", low=low, high=high)


@dataclass(frozen=True, slots=True)
class PairQuestion:
    """Two answers: 1 where the first is better, 0.5 for a tie, 0 where the second is."""

    rubric: str
    request: str
    first: str
    second: str

    def messages(self) -> list[dict[str, str]]:
        return judge_messages(
            what="a request and two answers to it",
            rubric=self.rubric,
            task="Say which of the two answers is better. Which one stands first is chance and says nothing about it. "
            "Call it a tie only where neither is better.",
            shape='{"reason": "<one or two sentences>", "winner": "first" or "second" or "tie"}',
            texts=(("REQUEST", self.request), ("FIRST ANSWER", self.first), ("SECOND ANSWER", self.second)),
        )

    def schema(self) -> dict[str, Any]:
        return PairVerdict.model_json_schema()

    def read(self, reply: str) -> float:
        return _WINS[read_verdict(PairVerdict, reply)["winner"]]
