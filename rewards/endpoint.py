"""Requests to an OpenAI-compatible endpoint: one at a time with retries, many at a time up to a limit, all counted.

A reward's judge (`judge_client.py`) and a model that curation and evaluation ask (`chat_endpoint.py`) both go through
here: what is retried, counted and kept out of messages is decided in this file alone.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from lwz_ray.chat import ChatFailedError, ChatReply
from lwz_ray.config import JudgeConfig
from lwz_ray.errors import UserError
from lwz_ray.text import half_character
from lwz_ray.verdicts import MalformedVerdictError
from rewards.endpoint_settings import check_judge_settings, read_key

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

T = TypeVar("T")
Reason = Literal["timeout", "connection", "server_error", "rate_limited", "malformed", "rejected"]
REASONS: tuple[Reason, ...] = get_args(Reason)
_MISTAKES = {
    401: "name an environment variable that holds a valid key with judge.api_key_env (now {config.api_key_env})",
    403: "name a model that the key may use with judge.model (now {config.model}), or another key with "
    "judge.api_key_env (now {config.api_key_env})",
    404: "see that judge.base_url={config.base_url} ends as the server's API does (/v1) and that it serves "
    "judge.model={config.model}",
}
"""Statuses that no retry and no other text changes: what to do about each."""
_PASSING = frozenset({408, 409, 425})
"""Statuses below 500, besides 429, that another attempt may not meet."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent."""

    messages: Sequence[Mapping[str, str]]
    schema: Mapping[str, Any] | None
    """Of the reply; None: free text."""
    temperature: float
    max_tokens: int
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request, such as top_p and seed."""


class _AttemptError(Exception):
    """One attempt failed in a way that another may not; `wait_s` is what the server asked for."""

    def __init__(self, reason: Reason, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.wait_s = wait_s


class Endpoint:
    """Asks; retries, limits and counts are here, since the library's own retries would not be counted."""

    def __init__(self, config: JudgeConfig, seed: int) -> None:
        """Check the settings, send nothing. seed: of the waits before retries, which are spread."""
        check_judge_settings(config)
        self._config = config
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._jitter = random.Random(seed)
        self._client: AsyncOpenAI | None = None
        self._key: str | None = None
        self._counts: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return f"the judge at {self._config.base_url}"

    @property
    def patience_s(self) -> float:
        """Seconds that a request with all its retries takes, where each times out and the server asks for no wait."""
        config = self._config
        waits_s = 1.5 * config.retry_wait_s * (2.0**config.max_retries - 1)
        return config.timeout_s * (config.max_retries + 1) + waits_s

    @property
    def usage(self) -> dict[str, float]:
        """Return the counts so far; `cost` only where prices are configured."""
        names = ("calls", "retries", "prompt_tokens", "completion_tokens", "replies_without_usage", "malformed")
        found = {name: float(self._counts[name]) for name in names}
        if self._config.price_input is not None and self._config.price_output is not None:
            spent = (
                self._counts["prompt_tokens"] * self._config.price_input
                + self._counts["completion_tokens"] * self._config.price_output
            )
            found["cost"] = spent / 1e6
        return found

    async def ask(self, call: Call, read: Callable[[ChatReply], T], stop_at: float | None) -> T:
        """Return what `read` makes of the reply; where it raises MalformedVerdictError, the call is tried again.

        stop_at: no retry begins after this time of `time.monotonic()`; None: `patience_s` after the first attempt.

        Raises ChatFailedError where no reply can be had, UserError where the endpoint refuses the key or does not know
        the address or the model.
        """
        attempt, end = 0, math.inf if stop_at is None else stop_at
        while True:
            try:
                async with self._slots:
                    if stop_at is None and attempt == 0:
                        end = time.monotonic() + self.patience_s
                    self._counts["calls"] += 1
                    return await self._attempt(call, read)
            except _AttemptError as error:
                failed = error
            # The slot is free again: a judge that asks one request to wait keeps none of the others from it.
            attempt += 1
            if attempt > self._config.max_retries:
                raise ChatFailedError(failed.reason, f"{self.name}: {failed} (attempt {attempt}, the last)") from failed
            wait_s = self._wait_s(failed, attempt)
            left_s = max(0.0, end - time.monotonic())
            if wait_s >= left_s:
                when = f"the next attempt is due in {wait_s:.3g} s, {left_s:.3g} s are left"
                raise ChatFailedError(failed.reason, f"{self.name}: {failed}; {when}") from failed
            await asyncio.sleep(wait_s)
            self._counts["retries"] += 1

    def _wait_s(self, failed: _AttemptError, attempt: int) -> float:
        """Return what the server asked for, else a wait that doubles, spread by half so that requests come apart."""
        if failed.wait_s is not None:
            return failed.wait_s
        return self._config.retry_wait_s * 2.0 ** (attempt - 1) * self._jitter.uniform(0.5, 1.5)

    async def _attempt(self, call: Call, read: Callable[[ChatReply], T]) -> T:
        """Send one request; every way in which it can fail becomes one of the errors of this file."""
        import openai

        try:
            # The library's timeout is of each read; this one is of the whole request.
            async with asyncio.timeout(self._config.timeout_s):
                completion = await self._send(call)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _AttemptError("timeout", f"no reply within judge.timeout_s={self._config.timeout_s:g}") from error
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APIConnectionError as error:
            raise _AttemptError("connection", f"no connection: {self._clean(error.__cause__ or error)}") from error
        except (openai.APIResponseValidationError, ValueError) as error:
            raise self._malformed(f"the body is no JSON: {self._clean(error)}") from error
        reply = self._reply(completion)
        try:
            return read(reply)
        except MalformedVerdictError as error:
            raise self._malformed(f"{error}, in {self._clean(reply.text)}") from error

    def _reply(self, completion: Any) -> ChatReply:
        """Take a body apart and count its tokens; raises _AttemptError where it is no chat completion with text."""
        tokens = self._count_tokens(completion)
        try:
            choice = completion.choices[0]
            content, finish_reason = choice.message.content, choice.finish_reason
        except (AttributeError, TypeError, IndexError) as error:
            raise self._malformed("the body is no chat completion") from error
        if content is None and finish_reason == "length":
            content = ""  # a reasoning model whose thoughts took all of its tokens
        if not isinstance(content, str):
            raise self._malformed(f"no text, finish_reason {finish_reason}")
        if half_character(content) is not None:
            raise self._malformed("half of a character, which no file can hold")
        return ChatReply(content, str(finish_reason), *tokens)

    async def _send(self, call: Call) -> Any:
        from openai import Omit

        config = self._config
        if self._client is None:
            self._client = self._connect()
        optional: dict[str, Any] = dict(call.more)
        if (wanted := response_format(config.structured_output, call.schema)) is not None:
            optional["response_format"] = wanted
        if self._key is None:
            optional["extra_headers"] = {"Authorization": Omit()}
        messages: Any = [dict(message) for message in call.messages]
        return await self._client.chat.completions.create(
            model=config.model or "",
            messages=messages,
            temperature=call.temperature,
            max_tokens=call.max_tokens,
            **optional,
        )

    def _connect(self) -> "AsyncOpenAI":
        """Build the client with the key as the environment has it now."""
        from openai import AsyncOpenAI

        self._key = read_key(self._config)
        return AsyncOpenAI(
            base_url=self._config.base_url,
            # Not given any, the library would send the key in OPENAI_API_KEY to whatever endpoint this is.
            api_key=self._key or "none",
            timeout=self._config.timeout_s,
            max_retries=0,
        )

    def _refused(self, error: "APIStatusError") -> Exception:
        """Sort a status of 400 or above: the user's mistake, this text's, or one that may pass."""
        status = error.status_code
        said = f"{status}: {self._clean(error.message.removeprefix(f'Error code: {status} - '))}"
        if status in _MISTAKES:
            return UserError(f"{self.name} answered {said}; {_MISTAKES[status].format(config=self._config)}")
        if status == 429:
            return _AttemptError("rate_limited", said, _retry_after(error.response.headers.get("retry-after")))
        if status >= 500:
            return _AttemptError("server_error", said, _retry_after(error.response.headers.get("retry-after")))
        if status in _PASSING:
            return _AttemptError("server_error", said)
        return ChatFailedError("rejected", f"{self.name} answered {said}", "data")

    def _malformed(self, why: str) -> _AttemptError:
        self._counts["malformed"] += 1
        return _AttemptError("malformed", f"malformed reply: {why}")

    def _count_tokens(self, completion: Any) -> tuple[int | None, int | None]:
        """Add what the server says the request cost; a reply that does not say it is counted as such."""
        usage = getattr(completion, "usage", None)
        read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        if not isinstance(read, int) or not isinstance(written, int):
            self._counts["replies_without_usage"] += 1
            return None, None
        self._counts["prompt_tokens"] += read
        self._counts["completion_tokens"] += written
        return read, written

    def _clean(self, said: object) -> str:
        """Return a message on one line, cut short, without the key, should the server repeat it."""
        text = str(said) or type(said).__name__
        return _short(text.replace(self._key, "[hidden]") if self._key else text)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


def response_format(
    kind: Literal["json_schema", "json_object", "none"], schema: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return what the endpoint's `response_format` is set to, None where it is left out."""
    if kind == "none" or schema is None:
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or as a date; None where it says neither."""
    if value is None:
        return None
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(wait_s, 0.0) if math.isfinite(wait_s) else None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."
