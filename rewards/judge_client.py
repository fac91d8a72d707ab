"""Requests to an OpenAI-compatible endpoint: one at a time with retries, many at a time up to a limit, all counted."""

import asyncio
import math
import os
import random
import time
from collections import Counter
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from lwz_ray.config import JudgeConfig
from lwz_ray.errors import UserError
from rewards.judge_prompts import MalformedVerdictError, Question, response_format

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

Reason = Literal[
    "timeout", "deadline", "connection", "server_error", "rate_limited", "malformed", "rejected", "no_reference"
]
REASONS: tuple[Reason, ...] = get_args(Reason)
Blame = Literal["data", "infrastructure"]
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


class JudgeFailedError(Exception):
    """A verdict that could not be had; `reason` is counted, the message is for people."""

    def __init__(self, reason: Reason, message: str, blame: Blame = "infrastructure") -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.blame: Blame = blame


class _AttemptError(Exception):
    """One attempt failed in a way that another may not; `wait_s` is what the server asked for."""

    def __init__(self, reason: Reason, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.wait_s = wait_s


def check_judge_settings(config: JudgeConfig) -> None:
    """Refuse an address or a key that cannot work, before anything is sent or loaded.

    Raises UserError; no message holds the key or a password.
    """
    if config.base_url is None:
        raise UserError("judge.base_url=null: name an OpenAI-compatible endpoint such as http://127.0.0.1:8000/v1")
    parts = urlsplit(config.base_url)
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"judge.base_url holds a user name or password for {parts.hostname}: keys belong into the environment "
            "variable that judge.api_key_env names"
        )
    try:
        port_is_good = parts.port is None or parts.port > 0
    except ValueError:  # no number, or above 65535
        port_is_good = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good:
        raise UserError(f"judge.base_url={config.base_url}: needs the form http://host:port/v1")
    read_key(config)


def read_key(config: JudgeConfig) -> str | None:
    """Return the key, None where the endpoint asks for none; raises UserError where its variable is not set."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"judge.api_key_env={config.api_key_env}: this environment variable is not set; export it where the run "
            "is started, or set judge.api_key_env=null for an endpoint that asks for no key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"judge.api_key_env={config.api_key_env}: what this environment variable holds is no key: needs printable "
            "ASCII without spaces"
        )
    return key


class JudgeClient:
    """Asks questions; retries, limits and counts are here, since the library's own retries would not be counted."""

    def __init__(self, config: JudgeConfig, seed: int) -> None:
        check_judge_settings(config)
        self._config = config
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._jitter = random.Random(seed)
        self._client: AsyncOpenAI | None = None
        self._key: str | None = None
        self._counts: Counter[str] = Counter()

    @property
    def usage(self) -> dict[str, float]:
        """Return the counts so far, as `judge/what`; `judge/cost` only where prices are configured."""
        names = ("calls", "retries", "prompt_tokens", "completion_tokens", "replies_without_usage", "malformed")
        found = {f"judge/{name}": float(self._counts[name]) for name in names}
        found |= {f"judge/failed_{reason}": float(self._counts[f"failed_{reason}"]) for reason in REASONS}
        if self._config.price_input is not None and self._config.price_output is not None:
            spent = (
                self._counts["prompt_tokens"] * self._config.price_input
                + self._counts["completion_tokens"] * self._config.price_output
            )
            found["judge/cost"] = spent / 1e6
        return found

    def count_failure(self, reason: Reason) -> None:
        self._counts[f"failed_{reason}"] += 1

    async def ask(self, question: Question, stop_at: float) -> float:
        """Return the value that the judge gives; no retry begins after `stop_at`, a time of `time.monotonic()`.

        Raises JudgeFailedError where no verdict can be had, UserError where the endpoint refuses the key or does not
        know the address or the model.
        """
        attempt = 0
        while True:
            try:
                async with self._slots:
                    self._counts["calls"] += 1
                    return await self._attempt(question)
            except _AttemptError as error:
                failed = error
            # The slot is free again: a judge that asks one request to wait keeps none of the others from it.
            attempt += 1
            if attempt > self._config.max_retries:
                raise JudgeFailedError(
                    failed.reason, f"{self._name}: {failed} (attempt {attempt}, the last)"
                ) from failed
            wait_s = self._wait_s(failed, attempt)
            left_s = max(0.0, stop_at - time.monotonic())
            if wait_s >= left_s:
                when = f"the next attempt is due in {wait_s:.3g} s, {left_s:.3g} s are left"
                raise JudgeFailedError(failed.reason, f"{self._name}: {failed}; {when}") from failed
            await asyncio.sleep(wait_s)
            self._counts["retries"] += 1

    def _wait_s(self, failed: _AttemptError, attempt: int) -> float:
        """Return what the server asked for, else a wait that doubles, spread by half so that requests come apart."""
        if failed.wait_s is not None:
            return failed.wait_s
        return self._config.retry_wait_s * 2.0 ** (attempt - 1) * self._jitter.uniform(0.5, 1.5)

    async def _attempt(self, question: Question) -> float:
        """Send one request; every way in which it can fail becomes one of the errors of this file."""
        import openai

        try:
            # The library's timeout is of each read; this one is of the whole request.
            async with asyncio.timeout(self._config.timeout_s):
                completion = await self._send(question)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _AttemptError("timeout", f"no reply within judge.timeout_s={self._config.timeout_s:g}") from error
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APIConnectionError as error:
            raise _AttemptError("connection", f"no connection: {self._clean(error.__cause__ or error)}") from error
        except (openai.APIResponseValidationError, ValueError) as error:
            raise self._malformed(f"the body is no JSON: {self._clean(error)}") from error
        self._count_tokens(completion)
        try:
            choice = completion.choices[0]
            content, finish_reason = choice.message.content, choice.finish_reason
        except (AttributeError, TypeError, IndexError) as error:
            raise self._malformed("the body is no chat completion") from error
        if finish_reason == "length":
            raise self._malformed(f"cut off by judge.max_tokens={self._config.max_tokens}")
        if not isinstance(content, str):
            raise self._malformed(f"no text, finish_reason {finish_reason}")
        try:
            return question.read(content)
        except MalformedVerdictError as error:
            raise self._malformed(f"{error}, in {self._clean(content)}") from error

    async def _send(self, question: Question) -> Any:
        from openai import Omit

        config = self._config
        if self._client is None:
            self._client = self._connect()
        optional: dict[str, Any] = {}
        if (wanted := response_format(config.structured_output, question)) is not None:
            optional["response_format"] = wanted
        if self._key is None:
            optional["extra_headers"] = {"Authorization": Omit()}
        messages: Any = question.messages()
        return await self._client.chat.completions.create(
            model=config.model or "",
            messages=messages,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
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
            return UserError(f"{self._name} answered {said}; {_MISTAKES[status].format(config=self._config)}")
        if status == 429:
            return _AttemptError("rate_limited", said, _retry_after(error.response.headers.get("retry-after")))
        if status >= 500:
            return _AttemptError("server_error", said, _retry_after(error.response.headers.get("retry-after")))
        if status in _PASSING:
            return _AttemptError("server_error", said)
        return JudgeFailedError("rejected", f"{self._name} answered {said}", "data")

    def _malformed(self, why: str) -> _AttemptError:
        self._counts["malformed"] += 1
        return _AttemptError("malformed", f"malformed reply: {why}")

    def _count_tokens(self, completion: Any) -> None:
        """Add what the server says the request cost; a reply that does not say it is counted as such."""
        usage = getattr(completion, "usage", None)
        read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        if isinstance(read, int) and isinstance(written, int):
            self._counts["prompt_tokens"] += read
            self._counts["completion_tokens"] += written
        else:
            self._counts["replies_without_usage"] += 1

    @property
    def _name(self) -> str:
        return f"the judge at {self._config.base_url}"

    def _clean(self, said: object) -> str:
        """Return a message on one line, cut short, without the key, should the server repeat it."""
        text = str(said) or type(said).__name__
        return _short(text.replace(self._key, "[hidden]") if self._key else text)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


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
