"""Conversations as tokens: what the assistant says is trained, by whose turn it is and never by what it says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from lwz_ray.config import TemplateConfig
from lwz_ray.errors import UserError
from lwz_ray.records import TrainSample
from lwz_ray.templates import parse_completion, render
from lwz_ray.text import detect_language

ROLES = ("system", "user", "assistant")


class BadPairError(Exception):
    """Why a conversation cannot be trained on."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, eq=False)
class EncodedChat:
    """A conversation as tokens, up to the last one that is trained."""

    token_ids: np.ndarray
    """int32 [num_tokens]"""
    loss_mask: np.ndarray
    """bool [num_tokens], true on the assistant's words and the end of its turns"""

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_trained(self) -> int:
        return int(self.loss_mask.sum())

    def sample(self, token_weight: float) -> TrainSample:
        """Return the sample; everything before the first trained token counts as its prompt."""
        nothing = np.zeros(self.num_tokens, np.float32)
        start = int(np.argmax(self.loss_mask))
        return TrainSample(self.token_ids, start, self.loss_mask, nothing, nothing, token_weight)


class ChatEncoder:
    """Gives a conversation the form in which every other stage asks: template, chat turns, prefill, stop string.

    With template=direct the assistant's words are put between the answer tags, so that the trained model is asked and
    read like the arms of stage=rl; with template=request turns stay as they are.

    Each part is tokenized by itself: the border between what is given and what is trained is a border of tokens, as
    it is when the model writes.
    """

    def __init__(self, tokenizer: Any, template: TemplateConfig) -> None:
        """tokenizer: a Hugging Face tokenizer. Raises UserError where it lacks a chat template or an EOS token."""
        if template.chat and not tokenizer.chat_template:
            raise UserError(
                "template.chat=true, but the model's tokenizer has no chat template: set template.chat=false (pairs of "
                "one request and one answer) or use an instruct model"
            )
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer of model.path has no EOS token, so that no answer could end; set eos_token in its "
                "tokenizer_config.json"
            )
        self._tokenizer, self._template = tokenizer, template

    def encode(self, turns: Sequence[Turn]) -> EncodedChat:
        """Return the tokens of checked turns; raises BadPairError where template and turns do not go together."""
        formed = [Turn(t.role, self._formed(t)) for t in turns]
        while formed[-1].role != "assistant":
            formed.pop()
        ids: list[int] = []
        mask: list[bool] = []
        for part, trained in self._chat(formed) if self._template.chat else self._plain(formed):
            ids += part
            mask += [trained] * len(part)
        last = max(i for i, trained in enumerate(mask) if trained)
        return EncodedChat(np.asarray(ids[: last + 1], np.int32), np.asarray(mask[: last + 1], bool))

    def _formed(self, turn: Turn) -> str:
        """Return a turn's text in the template's form; an assistant's begins with the prefill and ends with `stop`."""
        template = self._template
        if turn.role == "user":
            return render(template, turn.content, detect_language(turn.content))
        if turn.role == "system":
            return turn.content
        # White space around a text is no part of it, and would be read with its first and last words.
        rest = turn.content.strip().removeprefix(template.prefill)
        if not rest.endswith(template.stop):
            rest += template.stop
        if template.stop and not parse_completion(rest, template.arm, template.prefill).well_formed:
            raise BadPairError(
                f"with template.arm={template.arm} an answer needs "
                + ("a plan in <think></think>, then its text in <answer></answer>" if template.arm == "think" else "")
                + ("text without tags of its own" if template.arm == "direct" else "")
            )
        return template.prefill + rest

    def _plain(self, turns: Sequence[Turn]) -> list[tuple[list[int], bool]]:
        if [t.role for t in turns] != ["user", "assistant"]:
            raise BadPairError("template.chat=false has a form for one request and one answer only")
        prefill = self._template.prefill
        head = self._tokenizer(turns[0].content + prefill, verbose=False).input_ids
        answer = self._words(turns[1].content[len(prefill) :])
        return [(head, False), ([*answer, self._tokenizer.eos_token_id], True)]

    def _chat(self, turns: Sequence[Turn]) -> list[tuple[list[int], bool]]:
        prefill, done = self._template.prefill, 0
        whole = self._render(turns, False)
        parts: list[tuple[list[int], bool]] = []
        for k, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before, after = self._render(turns[:k], True), self._render(turns[: k + 1], False)
            if not whole.startswith(after):
                raise BadPairError(
                    f"the model's chat template writes turn {k + 1} otherwise once others follow, so it cannot be told "
                    "what the model would have seen; give conversations of one request and one answer"
                )
            asked = before + prefill
            if not after.startswith(asked):
                raise BadPairError(
                    f"the model's chat template asks for turn {k + 1} with {asked[-40:]!r} and writes the turn itself "
                    "without it, so the answer would not stand where the model writes it; give the model another one"
                )
            said = after[len(asked) :]
            words = turn.content[len(prefill) :].strip()
            stop = said.find(words) + len(words)
            if words not in said:
                raise BadPairError(f"the model's chat template changes the text of turn {k + 1}")
            parts.append((self._markup(whole[done : len(before)] + prefill), False))
            parts.append((self._words(said[:stop]), True))
            parts += self._end(self._markup(said[stop:]), k == len(turns) - 1)
            done = len(after)
        return parts

    def _end(self, tail: list[int], is_last: bool) -> list[tuple[list[int], bool]]:
        """Split what the template puts after a turn: up to its first special token the model has to write it."""
        special = set(self._tokenizer.all_special_ids)
        first = next((i for i, token in enumerate(tail) if token in special), None)
        if first is not None:
            return [(tail[: first + 1], True), (tail[first + 1 :], False)]
        return [([self._tokenizer.eos_token_id], True)] if is_last else [(tail, False)]

    def _render(self, turns: Sequence[Turn], ask: bool) -> str:
        messages = [{"role": t.role, "content": t.content} for t in turns]
        try:
            return self._tokenizer.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False)
        except TemplateError as error:  # a role or an order that the model does not know
            raise BadPairError(f"the model's chat template refuses the conversation: {error}") from error

    def _markup(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text else []

    def _words(self, text: str) -> list[int]:
        """Return tokens of a text in which a special token's name is text."""
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
