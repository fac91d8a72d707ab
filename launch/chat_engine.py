"""A language model in engines of this run, asked by curation and evaluation through the rollout pool."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

from actors.pool import RolloutPool
from lwz_ray.chat import ChatFailedError, ChatReply, ChatRequest
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError
from lwz_ray.records import Completion, RolloutRequest

MAX_FAILED_IN_A_ROW = 8
"""Requests that no engine answered; then the model is taken for gone."""


class EngineChat:
    """Implements `lwz_ray.chat.ChatModel`: the tokenizer's chat template around the messages, one sample a request."""

    def __init__(self, pool: RolloutPool, tokenizer: Any, max_length_tokens: int, seed: int) -> None:
        """tokenizer: a Hugging Face fast tokenizer; max_length_tokens: of prompt and reply together.

        Raises UserError for a base model, whose tokenizer has no chat template.
        """
        if not tokenizer.chat_template:
            raise UserError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template, so it cannot be asked; name an "
                "instruct model, or an endpoint with judge.base_url"
            )
        self._pool, self._tokenizer = pool, tokenizer
        self._max_length_tokens, self._seed = max_length_tokens, seed
        self._counts: Counter[str] = Counter()
        self._failed_in_a_row = 0

    @property
    def name(self) -> str:
        """The model's folder."""
        return self._tokenizer.name_or_path

    @property
    def usage(self) -> Mapping[str, float]:
        """Counts so far; an engine of ours has no price, and the pool tries again by itself."""
        return {name: float(self._counts[name]) for name in ("calls", "retries", "prompt_tokens", "completion_tokens")}

    async def reply(self, request: ChatRequest) -> ChatReply:
        """Return the reply; it has fewer tokens than it may have where the context leaves no more.

        Raises ChatFailedError with reason `too_long` where the messages leave no room for a reply, `timeout` where no
        engine answered in actors.request_timeout_s, `engine_lost` where its engines were lost too often, `deadline`
        where it was cut by actors.sample_deadline_s. Raises UserError after MAX_FAILED_IN_A_ROW without an answer.
        """
        ids = self._encode(request)
        room = self._max_length_tokens - len(ids)
        if room < 1:
            longest = self._max_length_tokens
            raise ChatFailedError(
                "too_long", f"a request of {len(ids)} tokens leaves no room in the {longest} of {self.name}", "data"
            )
        schema = None if request.schema is None else json.dumps(request.schema)
        asked = RolloutRequest(
            ids, 1, self._draw(request), request.temperature, min(request.max_tokens, room),
            top_p=request.top_p, json_schema=schema,
        )  # fmt: skip
        self._counts["calls"] += 1
        completion = await self._complete(asked)
        if completion.finish_reason == "abort":
            raise ChatFailedError("deadline", f"{self.name} did not end its reply before actors.sample_deadline_s")
        self._counts["prompt_tokens"] += len(ids)
        self._counts["completion_tokens"] += completion.num_tokens
        return ChatReply(completion.text, completion.finish_reason, len(ids), completion.num_tokens)

    async def _complete(self, asked: RolloutRequest) -> Completion:
        try:
            async with contextlib.aclosing(self._pool.stream(asked)) as stream:
                async for _, completion in stream:
                    self._failed_in_a_row = 0
                    return completion
        except WaitTimeoutError as error:
            raise self._unanswered("timeout", error) from error
        except InfrastructureError as error:
            raise self._unanswered("engine_lost", error) from error
        raise AssertionError("the pool yields every sample or raises")

    def _unanswered(self, reason: str, error: InfrastructureError) -> Exception:
        self._failed_in_a_row += 1
        if self._failed_in_a_row < MAX_FAILED_IN_A_ROW:
            return ChatFailedError(reason, str(error))
        return UserError(
            f"{self.name} left {self._failed_in_a_row} requests in a row without a reply, the last one because of: "
            f"{error}; see Ray's logs of its engines and actors.request_timeout_s, then go on with run.resume=auto: "
            "what it has answered is kept"
        )

    def _encode(self, request: ChatRequest) -> list[int]:
        messages = [dict(message) for message in request.messages]
        try:
            text = self._rendered(messages)
        except TemplateError:
            if not messages or messages[0]["role"] != "system":
                raise
            text = self._rendered(_without_system(messages))
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _draw(self, request: ChatRequest) -> int:
        """Return the engine's seed of one request: the same for the same run and request, in any order of asking."""
        asked = request.key or json.dumps([dict(message) for message in request.messages])
        digest = hashlib.sha256(f"{self._seed}/{request.seed}/{asked}".encode()).digest()
        return int.from_bytes(digest[:4], "big") // 2

    async def close(self) -> None:
        """Leave the pool as it is: whoever started it closes it."""


def _without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages for a template that knows no system turn: what it says stands before the first other one."""
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]
