"""A language model behind the endpoint of `judge`, asked by curation and evaluation."""

from collections.abc import Mapping

from lwz_ray.chat import ChatFailedError, ChatReply, ChatRequest
from lwz_ray.config import JudgeConfig
from lwz_ray.errors import UserError
from rewards.endpoint import Call, Endpoint

MAX_FAILED_IN_A_ROW = 8
"""Requests that the endpoint left without any reply, each after its retries; then it is taken for gone."""


class EndpointChat:
    """Implements `lwz_ray.chat.ChatModel`; address, key, limits and retries are those of `judge`.

    The sampling settings are the request's own. `judge.mode`, `rubric`, `temperature` and `max_tokens` are of the
    reward and not read here.
    """

    def __init__(self, config: JudgeConfig, seed: int) -> None:
        """Raises UserError where the address or the key's variable cannot work; sends nothing."""
        self._endpoint = Endpoint(config, seed)
        self._config = config
        self._failed_in_a_row = 0

    @property
    def name(self) -> str:
        """The model's name, as the endpoint knows it."""
        return self._config.model or ""

    @property
    def usage(self) -> Mapping[str, float]:
        """Counts so far; `replies_without_usage` says how many the tokens and the cost know nothing of."""
        return self._endpoint.usage

    async def reply(self, request: ChatRequest) -> ChatReply:
        """Return the reply, whole or cut off.

        Raises ChatFailedError after the last attempt; UserError where the endpoint refuses the key, does not know the
        address or the model, or has left MAX_FAILED_IN_A_ROW requests in a row without a reply.
        """
        more = {"top_p": request.top_p, "seed": request.seed}
        call = Call(request.messages, request.schema, request.temperature, request.max_tokens, more)
        try:
            found = await self._endpoint.ask(call, lambda reply: reply, None)
        except ChatFailedError as error:
            if error.blame == "infrastructure":
                self._count_failed(error)
            raise
        self._failed_in_a_row = 0
        return found

    def _count_failed(self, error: ChatFailedError) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILED_IN_A_ROW:
            raise UserError(
                f"{self._failed_in_a_row} requests in a row were left without a reply, the last one because of "
                f"{error}; see that the server at judge.base_url runs, then go on with run.resume=auto: what it has "
                "answered is kept"
            ) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()
