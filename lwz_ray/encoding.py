"""From a request to the token ids that the policy continues."""

from typing import Any

import numpy as np

from lwz_ray.config import TemplateConfig
from lwz_ray.errors import UserError
from lwz_ray.records import Prompt
from lwz_ray.templates import render


class PromptEncoder:
    """Renders the template of the request's language, adds the chat turn and the prefill, and tokenizes."""

    def __init__(self, tokenizer: Any, template: TemplateConfig) -> None:
        """tokenizer: a Hugging Face fast tokenizer."""
        if template.chat and not tokenizer.chat_template:
            raise UserError(
                "template.chat=true, but the model's tokenizer has no chat template: set template.chat=false "
                "or use an instruct model"
            )
        self._tokenizer = tokenizer
        self._template = template

    def text(self, prompt: Prompt) -> str:
        """Return the whole prompt as text, up to where the policy starts to write."""
        body = render(self._template, prompt.text, prompt.language)
        if self._template.chat:
            turn = [{"role": "user", "content": body}]
            body = self._tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return body + self._template.prefill

    def encode(self, prompt: Prompt) -> np.ndarray:
        """Return int32 [num_prompt_tokens]."""
        # A chat template writes its own special tokens; a plain text needs the tokenizer's.
        ids = self._tokenizer(self.text(prompt), add_special_tokens=not self._template.chat)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def num_plain_tokens(self, text: str) -> int:
        """Return the number of tokens of a text by itself, without template and special tokens."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def num_tokens(self, prompt: Prompt) -> int:
        return int(self.encode(prompt).shape[0])
