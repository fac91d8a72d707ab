"""The policy model at work for `stage=curate`: it writes texts, rewrites sentences, and goes on too hot."""

import contextlib
from typing import Any, Literal

import numpy as np

from actors.pool import RolloutPool
from lwz_ray.config import Config
from lwz_ray.data import Prompt
from lwz_ray.encoding import PromptEncoder
from lwz_ray.good_texts import GoodText
from lwz_ray.records import Completion, RolloutRequest

REWRITE_TEMPERATURE = 0.7
REWRITE_REQUESTS: dict[str, str] = {
    "en": "Rewrite the following sentence in other words. Reply with the new sentence only.\n\n{sentence}",
    "zh": "用别的话重写下面这句话，只回复新的句子。\n\n{sentence}",
}
TOKENS_OVER = 1.5
"""What the model writes in the place of a passage may take this many times its tokens."""


class PolicyWriter:
    """Asks the rollout pool; counts the tokens that it wrote."""

    def __init__(self, config: Config, pool: RolloutPool, encoder: PromptEncoder, tokenizer: Any) -> None:
        """tokenizer: a Hugging Face fast tokenizer, the encoder's own."""
        self._config, self._pool, self._encoder, self._tokenizer = config, pool, encoder, tokenizer
        self.num_tokens = 0

    async def write(self, prompt: Prompt, seed: int) -> list[Completion]:
        """Return `curate.samples_per_prompt` texts to a prompt, in the order of their index."""
        return await self._complete(self._encoder.encode(prompt), self._config.curate.samples_per_prompt, seed)

    async def rewrite(self, sentence: str, language: str, seed: int) -> str | None:
        """Ask for the sentence in other words; None where the answer was cut by its limit."""
        request = REWRITE_REQUESTS[language].replace("{sentence}", sentence, 1)
        limit = int(TOKENS_OVER * len(self._plain(sentence))) + 16
        ids = self._request(request)
        (answer,) = await self._complete(ids, 1, seed, REWRITE_TEMPERATURE, self._room(len(ids), limit))
        return answer.text if answer.finish_reason == "stop" else None

    async def go_on(self, text: GoodText, head: str, rest: str, temperature: float, seed: int) -> str:
        """Let the model continue the head of a text in the place where it stood, after its prompt."""
        prompt = Prompt(text.prompt_id, text.prompt, _language(text.language), None, 0)
        ids = [*self._encoder.encode(prompt).tolist(), *self._plain(head)]
        # Hot words take more tokens than the model's usual ones; what is over is cut off by words.
        limit = self._room(len(ids), int(TOKENS_OVER * len(self._plain(rest))))
        (completion,) = await self._complete(ids, 1, seed, temperature, limit)
        return completion.text.removesuffix(self._config.template.stop)

    async def _complete(
        self,
        prompt_token_ids: Any,
        num_samples: int,
        seed: int,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> list[Completion]:
        ids = np.asarray(prompt_token_ids).tolist()
        found: dict[int, Completion] = {}
        stream = self._pool.stream(RolloutRequest(ids, num_samples, seed, temperature, max_tokens))
        async with contextlib.aclosing(stream):
            async for index, completion in stream:
                found[index] = completion
                self.num_tokens += completion.num_tokens
        return [found[i] for i in range(num_samples)]

    def _request(self, text: str) -> list[int]:
        """Return the tokens of a request of ours, in the model's chat format where the template uses it."""
        if not self._config.template.chat:
            return self._tokenizer(text + "\n\n").input_ids
        turn = [{"role": "user", "content": text}]
        rendered = self._tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return self._plain(rendered)

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def _room(self, num_prompt_tokens: int, wanted: int) -> int:
        """Limit what is asked for to what the engine's context holds."""
        return max(1, min(wanted, self._config.model.max_length_tokens - num_prompt_tokens))


def _language(name: str) -> Literal["en", "zh"]:
    return "zh" if name == "zh" else "en"
