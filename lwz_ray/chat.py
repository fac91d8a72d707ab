"""A language model that is asked, not trained: the records and the protocol that curation and evaluation share.

Behind it stands an OpenAI-compatible endpoint or a vLLM engine of this run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One conversation that the model is to answer."""

    messages: tuple[Mapping[str, str], ...]
    """`role` and `content` of each turn."""
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    """The same request with another seed is another draw."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the reply must follow, where the model's server can hold it to one."""
    key: str | None = None
    """What tells this request from others where its messages hold random parts; None: the messages do."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What came back."""

    text: str
    finish_reason: str
    """stop | length | repetition | content_filter …; only with `stop` is the text whole."""
    prompt_tokens: int | None
    """None where the server did not say, as for the next."""
    completion_tokens: int | None

    @property
    def whole(self) -> bool:
        """Say whether the model ended the text itself."""
        return self.finish_reason == "stop"


class ChatFailedError(Exception):
    """No reply could be had; `reason` is counted, the message is for people."""

    def __init__(self, reason: str, message: str, blame: Literal["data", "infrastructure"] = "infrastructure") -> None:
        """blame: data where this request is at fault and others may pass."""
        super().__init__(message)
        self.reason = reason
        self.blame: Literal["data", "infrastructure"] = blame


class ChatModel(Protocol):
    """Answers requests, many at a time."""

    @property
    def name(self) -> str:
        """What reports call it: the endpoint's model name, or the model's folder."""
        ...

    @property
    def usage(self) -> Mapping[str, float]:
        """Counts so far: `calls`, `retries`, `prompt_tokens`, `completion_tokens`, `cost` where prices are known."""
        ...

    async def reply(self, request: ChatRequest) -> ChatReply:
        """Return the reply. Raises ChatFailedError after the last attempt, UserError for what no attempt can mend."""
        ...

    async def close(self) -> None: ...
