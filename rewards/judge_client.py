"""A reward's questions to the judge's endpoint, with what each way of failing counts as."""

from collections import Counter
from typing import Literal, get_args

from lwz_ray.chat import ChatReply
from lwz_ray.config import JudgeConfig
from lwz_ray.verdicts import MalformedVerdictError
from rewards.endpoint import REASONS as ENDPOINT_REASONS
from rewards.endpoint import Call, Endpoint
from rewards.judge_prompts import Question

OwnReason = Literal["deadline", "no_reference"]
REASONS: tuple[str, ...] = (*ENDPOINT_REASONS, *get_args(OwnReason))


class JudgeClient:
    """Asks questions and reads their verdicts."""

    def __init__(self, config: JudgeConfig, seed: int) -> None:
        """Raises UserError where the address or the key's variable cannot work; sends nothing."""
        self._config = config
        self._endpoint = Endpoint(config, seed)
        self._failed: Counter[str] = Counter()

    @property
    def usage(self) -> dict[str, float]:
        """Return the counts so far, as `judge/what`; `judge/cost` only where prices are configured."""
        found = {f"judge/{name}": value for name, value in self._endpoint.usage.items()}
        return found | {f"judge/failed_{reason}": float(self._failed[reason]) for reason in REASONS}

    def count_failure(self, reason: str) -> None:
        self._failed[reason] += 1

    async def ask(self, question: Question, stop_at: float) -> float:
        """Return the value that the judge gives; no retry begins after `stop_at`, a time of `time.monotonic()`.

        Raises ChatFailedError where no verdict can be had, UserError where the endpoint refuses the key or does not
        know the address or the model.
        """
        config = self._config
        call = Call(question.messages(), question.schema(), config.temperature, config.max_tokens)

        def read(reply: ChatReply) -> float:
            if reply.finish_reason == "length":
                raise MalformedVerdictError(f"cut off by judge.max_tokens={config.max_tokens}")
            return question.read(reply.text)

        return await self._endpoint.ask(call, read, stop_at)

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()
