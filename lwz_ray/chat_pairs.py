"""Chat pairs for `stage=sft`: conversations in, samples out whose loss is on the assistant's turns.

rows ─▶ bad? ─▶ too long? ─▶ split by content ─▶ batches of samples_per_step   every row that goes elsewhere is counted
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lwz_ray.chat_pairs_encoding import ROLES, BadPairError, ChatEncoder, EncodedChat, Turn
from lwz_ray.config import Config
from lwz_ray.config_corpus import SftColumnsConfig
from lwz_ray.corpus_encoding import fingerprint
from lwz_ray.data import PromptOrder
from lwz_ray.errors import UserError
from lwz_ray.records import TrainSample
from lwz_ray.sources import BadRow, Row, read_rows
from lwz_ray.text import half_character
from lwz_ray.token_budget import TokenBudget

LEFT_OUT = ("bad_rows", "too_long")


class ChatPairBatches:
    """The training data of `stage=sft`; implements `lwz_ray.supervised.SupervisedBatches`."""

    names = ("pairs",)

    def __init__(
        self,
        config: Config,
        train: Sequence[EncodedChat],
        held_out: Sequence[EncodedChat],
        counts: Mapping[str, Any],
        data_word: str,
    ) -> None:
        """counts: of the rows; data_word: changes with what conversations say and with the form that they are given."""
        self._size, self._train = config.sft.samples_per_step, list(train)
        self._order = PromptOrder(len(self._train), config.seed, shuffle=True)
        self._position = 0
        self._rows = {
            **counts,
            "train": len(self._train),
            "held_out": len(held_out),
            "tokens": sum(chat.num_tokens for chat in self._train),
            "answer_tokens": sum(chat.num_trained for chat in self._train),
        }
        self._given = 0
        # Not of token ids: some chat templates write today's date, and a run may go on tomorrow.
        self._settings = [config.seed, self._size, data_word]
        total = sum(chat.num_trained for chat in held_out)
        self.held_out = [chat.sample(1.0 / total) for chat in held_out]
        self.held_out_texts = range(len(held_out))

    @property
    def digest(self) -> str:
        """Return a word that changes with everything that batches and held-out conversations depend on."""
        return hashlib.sha256(json.dumps(self._settings).encode()).hexdigest()[:16]

    @property
    def counts(self) -> dict[str, Any]:
        """Return what became of every row, what one epoch holds, and what was given so far."""
        return {
            **self._rows,
            "samples_given": self._position,
            "tokens_given": self._given,
            "epochs": self._position / len(self._train),
        }

    def next(self) -> list[TrainSample]:
        """Return the next `sft.samples_per_step` conversations of the order, which begins anew after each epoch."""
        chosen = [self._train[self._order.index(self._position + i)] for i in range(self._size)]
        self._position += self._size
        trained = sum(chat.num_trained for chat in chosen)
        self._given += trained
        return [chat.sample(1.0 / trained) for chat in chosen]

    def state(self) -> dict[str, Any]:
        """Return the place in the order."""
        return {"position": self._position, "tokens": self._given}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken."""
        self._position, self._given = state["position"], state["tokens"]


def load_chat_pairs(config: Config, tokenizer: Any) -> ChatPairBatches:
    """Return the batches of a config.

    Raises UserError as `read_pairs` does; for a conversation that its template cannot express, where `sft.on_bad_row`
    is `error`; for one that is too long, where `sft.on_too_long` is `error`; and where one of the sides is empty.
    """
    encoder, counts = ChatEncoder(tokenizer, config.template), Counter[str]()
    found = _encode(config, "sft.path", encoder, counts)
    rows: dict[str, Any] = {name: counts[name] for name in ("read", "kept", *LEFT_OUT)}
    if config.sft.eval_path is None:
        train, held_out = _split(config, found)
    else:
        others = Counter[str]()
        held_out = _encode(config, "sft.eval_path", encoder, others)
        # A conversation that is in both files is held out.
        train = {word: chats for word, chats in found.items() if word not in held_out}
        rows["copies_of_held_out"] = sum(len(chats) for word, chats in found.items() if word in held_out)
        rows["eval_path"] = {name: others[name] for name in ("read", "kept", *LEFT_OUT)}
        if not train:
            raise UserError(f"sft.path={config.sft.path}: all its conversations are in sft.eval_path; name another")
    chosen, aside = ([chat for chats in side.values() for chat in chats] for side in (train, held_out))
    said = [[(word, len(chats)) for word, chats in side.items()] for side in (train, held_out)]
    facts = [fingerprint(tokenizer), tokenizer.chat_template, config.template.model_dump(), said]
    return ChatPairBatches(config, chosen, aside, rows, hashlib.sha256(json.dumps(facts).encode()).hexdigest())


def read_pairs(config: Config, key: str) -> Iterator[tuple[str, list[Turn] | None]]:
    """Yield place and turns of every row of `sft.path` or `sft.eval_path`, one in memory at a time; None: a bad row.

    Needs no tokenizer. Raises UserError with file, place and reason for a bad row where `sft.on_bad_row` is `error`,
    and for a source that cannot be read or holds no conversation.
    """
    sft = config.sft
    path = sft.path if key == "sft.path" else sft.eval_path
    if path is None:
        raise UserError("stage=sft needs chat pairs: sft.path=FILE, a .jsonl or .parquet file, or hub:owner/name")
    good = bad = 0
    first = "it is empty"
    for row in _rows(key, path, sft.split):
        place = f"{path}, {row.place}"
        try:
            turns = _turns(row, sft.columns)
        except BadPairError as error:
            _refuse(config, f"{key}: {place}: {error}", error)
            turns, first = None, first if bad else f"every row is bad, {row.place}: {error}"
        good, bad = good + (turns is not None), bad + (turns is None)
        yield place, turns
    if not good:
        raise UserError(f"{key}: {path} holds no conversation ({first}); name another source")


def count_pairs(config: Config, key: str) -> tuple[int, int]:
    """Walk through a source; return its conversations and bad rows. Raises UserError as `read_pairs` does."""
    found = Counter(turns is None for _, turns in read_pairs(config, key))
    return found[False], found[True]


def budget(config: Config) -> TokenBudget:
    """Return when `stage=sft` is over."""
    return TokenBudget(config.steps, config.sft.max_tokens)


def _rows(key: str, path: str, split: str) -> Iterator[Row]:
    try:
        yield from read_rows(path, split)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _encode(config: Config, key: str, encoder: ChatEncoder, counts: Counter[str]) -> dict[str, list[EncodedChat]]:
    """Return the conversations of a source by a word for what they say: copies have the same one."""
    found: dict[str, list[EncodedChat]] = {}
    longest = config.model.max_length_tokens
    for place, turns in read_pairs(config, key):
        counts["read"] += 1
        if turns is None:
            counts["bad_rows"] += 1
            continue
        try:
            chat = encoder.encode(turns)
        except BadPairError as error:
            _refuse(config, f"{key}: {place}: {error}", error)
            counts["bad_rows"] += 1
            continue
        if chat.num_tokens > longest:
            if config.sft.on_too_long == "error":
                raise UserError(
                    f"{key}: {place}: {chat.num_tokens:,} tokens, over model.max_length_tokens={longest:,}; raise it, "
                    "or leave such conversations out with sft.on_too_long=drop"
                )
            counts["too_long"] += 1
            continue
        counts["kept"] += 1
        word = hashlib.sha256(json.dumps([[t.role, t.content] for t in turns]).encode()).hexdigest()
        found.setdefault(word, []).append(chat)
    if not found:
        lost = ", ".join(f"{counts[k]} {k}" for k in LEFT_OUT if counts[k])
        raise UserError(f"{key}: none of {counts['read']} conversations is left ({lost}); see docs/pretraining.md")
    return found


def _split(
    config: Config, found: dict[str, list[EncodedChat]]
) -> tuple[dict[str, list[EncodedChat]], dict[str, list[EncodedChat]]]:
    """Hold out the share, at least one conversation, that a hash of seed and content puts first."""
    if len(found) < 2:
        raise UserError(
            "sft.path holds one conversation, and sft.held_out_share needs one beside it: give more, or sft.eval_path"
        )
    num = min(max(1, round(config.sft.held_out_share * len(found))), len(found) - 1)
    ranked = sorted(found, key=lambda word: hashlib.sha256(f"{config.seed}/{word}".encode()).digest())
    chosen = set(ranked[:num])
    train = {word: chats for word, chats in found.items() if word not in chosen}
    return train, {word: chats for word, chats in found.items() if word in chosen}


def _turns(row: Row, columns: SftColumnsConfig) -> list[Turn]:
    """Return the turns of a row; raises BadPairError where they are no conversation."""
    content = row.content
    if isinstance(content, BadRow):
        raise BadPairError(content.reason)
    if columns.prompt is not None and columns.answer is not None:
        named = {"user": columns.prompt, "assistant": columns.answer}
        for column in named.values():
            _needs(content, column)
        return _checked([Turn(role, content[column]) for role, column in named.items()])
    column = columns.messages
    assert column is not None
    _needs(content, column)
    messages = content[column]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise BadPairError(f"{column}: needs a list of turns, each with role and content")
    return _checked([Turn(m.get("role"), m.get("content")) for m in messages])  # pyright: ignore[reportArgumentType]


def _needs(content: Mapping[str, Any], column: str) -> None:
    if column not in content:
        raise BadPairError(f"no column {column!r} among {sorted(content)} (sft.columns names them)")


def _checked(turns: list[Turn]) -> list[Turn]:
    """Return the turns where they are text, begin with the user (after a system turn), alternate, and are answered."""
    for number, turn in enumerate(turns, start=1):
        if turn.role not in ROLES:
            raise BadPairError(f"turn {number} has role {turn.role!r}: needs one of {', '.join(ROLES)}")
        if not isinstance(turn.content, str) or not turn.content.strip():
            raise BadPairError(f"turn {number} ({turn.role}) has no text")
        if (at := half_character(turn.content)) is not None:
            raise BadPairError(f"turn {number} ({turn.role}) holds half of a character at character {at}")
    said = turns[1:] if turns and turns[0].role == "system" else turns
    for number, turn in enumerate(said):
        wanted = ROLES[1 + number % 2]
        if turn.role != wanted:
            raise BadPairError(f"the {turn.role}'s turn stands where the {wanted}'s should: they have to alternate")
    if len(said) < 2:
        raise BadPairError("no turn of the assistant: nothing could be trained")
    return turns


def _refuse(config: Config, words: str, error: Exception) -> None:
    """Raise UserError unless such rows are to be skipped."""
    if config.sft.on_bad_row == "error":
        raise UserError(f"{words}; correct it, or leave such rows out with sft.on_bad_row=skip") from error
