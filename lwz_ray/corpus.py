"""Documents packed into sequences of the context's length, from several sources in given shares.

    source a  d1 d1 d1 d1 d1 │ d2 d2 …        sequence 1   d1 d1 d1 d1 d1 │ e1 e1 │ d2
    source b  e1 e1 │ e2 …            ─▶      sequence 2   d2 d2 d2 │ d3 …

Which source gives the next piece is decided by count and not by chance: the one whose next piece would be least early.
A source with weight w that has given g trained tokens, and whose next piece holds n, is due at (g + n / 2) / w; the
earliest is served. So every source's share is its weight's to within half a piece of its own, and half a piece of each
other one times its weight, at any moment, and the gap does not grow (stride scheduling, Waldspurger and Weihl 1995).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from lwz_ray.config import Config
from lwz_ray.config_corpus import CorpusSourceConfig
from lwz_ray.corpus_encoding import DocumentEncoder, cut, fingerprint, piece
from lwz_ray.corpus_index import DocumentIndex, index_documents
from lwz_ray.corpus_stream import DocumentStream
from lwz_ray.errors import UserError
from lwz_ray.records import TrainSample
from lwz_ray.token_budget import TokenBudget, check_epochs

HELD_OUT = "held_out"
"""The name of the documents of `corpus.eval_path` among the sources."""
COUNTED_CHARS = 4_000_000
"""A source with at most so many characters is tokenized whole to count its tokens; of a larger one SPREAD documents."""
SPREAD = 256


class CorpusBatches:
    """The training data of `stage=pretrain`; implements `lwz_ray.supervised.SupervisedBatches`."""

    def __init__(
        self,
        config: Config,
        encoder: DocumentEncoder,
        train: Mapping[str, DocumentIndex],
        held_out: Mapping[str, DocumentIndex],
        tokenizer_word: str,
    ) -> None:
        """train, held_out: documents by the source's name; tokenizer_word: changes where token ids would."""
        self._config = config
        self._length = config.model.max_length_tokens
        self._weights = [config.corpus.sources[name].weight for name in train]
        self._train, self._tokenizer_word = dict(train), tokenizer_word
        self.names = (*train, *(name for name in held_out if name not in train))
        shuffle = config.corpus.shuffle
        self._streams = [
            DocumentStream(index, encoder, config.seed, number, shuffle) for number, index in enumerate(train.values())
        ]
        self._encoder = encoder
        self._held_out = held_out
        self.held_out, self.held_out_texts = self._encode_held_out()

    @property
    def digest(self) -> str:
        """Return a word that changes with everything that batches and held-out documents depend on."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        config = self._config
        settings = [config.seed, config.corpus.shuffle, config.corpus.sequences_per_step, self._length]
        facts = [*settings, self._tokenizer_word, self.names, list(self._train), self._weights]
        found = hashlib.sha256(json.dumps(facts).encode())
        for index in (*self._train.values(), *self._held_out.values()):
            found.update(f"{index.num_documents} ".encode())
            for column in (index.hashes, index.block_numbers()):
                found.update(column.tobytes())
        return found.hexdigest()[:16]

    @property
    def counts(self) -> dict[str, Any]:
        """Return what became of every row, and what each source has given so far, by its name."""
        total, whole = sum(s.tokens for s in self._streams), sum(self._weights)
        found: dict[str, Any] = {}
        for (name, index), stream, weight in zip(self._train.items(), self._streams, self._weights, strict=True):
            held_out = self._held_out[name].num_documents if name in self._held_out else 0
            found[name] = {
                **index.counts,
                "held_out": held_out,
                "copies_of_held_out": index.counts["documents"] - held_out - index.num_documents,
                "share": weight / whole,
                "given_share": stream.tokens / total if total else None,
                "tokens_given": stream.tokens,
                "epochs": stream.epochs,
            }
        if HELD_OUT in self._held_out:
            found[HELD_OUT] = dict(self._held_out[HELD_OUT].counts)
        return found

    def next(self) -> list[TrainSample]:
        """Return the pieces of the next `corpus.sequences_per_step` sequences.

        Pieces of one sequence follow each other and fill model.max_length_tokens; where a single token is left over it
        stays free, since a piece needs a token of context and one to train. A document that does not fit goes on in
        the next piece of its source, which repeats the last token as its context.
        """
        found: list[TrainSample] = []
        for _ in range(self._config.corpus.sequences_per_step):
            room = self._length
            while room >= 2:
                number, trained = self._due(room)
                tokens = self._streams[number].take(trained)
                found.append(piece(tokens, number, 0.0))
                room -= tokens.shape[0]
        weight = 1.0 / sum(sample.num_trained for sample in found)
        return [replace(sample, token_weight=weight) for sample in found]

    def state(self) -> dict[str, Any]:
        """Return the place in every source; with it the next `next` gives the same tokens."""
        return {name: stream.state() for name, stream in zip(self._train, self._streams, strict=True)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken."""
        for name, stream in zip(self._train, self._streams, strict=True):
            stream.restore(state[name])

    def _due(self, room: int) -> tuple[int, int]:
        """Return the source that is served next, and how many tokens of its next piece are trained."""
        sizes = [min(stream.remaining, room - 1) for stream in self._streams]
        due = [
            (2 * stream.tokens + size) / weight
            for stream, size, weight in zip(self._streams, sizes, self._weights, strict=True)
        ]
        number = min(range(len(due)), key=lambda i: due[i])
        return number, sizes[number]

    def _encode_held_out(self) -> tuple[list[TrainSample], list[int]]:
        """Return the pieces of every held-out document, and the document's number for each."""
        places = [(name, index, i) for name, index in self._held_out.items() for i in range(index.num_documents)]
        pieces = [
            (number, self.names.index(name), tokens)
            for number, (name, index, i) in enumerate(places)
            for tokens in cut(self._encoder.encode(index.text(i)), self._length)
        ]
        total = sum(tokens.shape[0] - 1 for _, _, tokens in pieces)
        return [piece(tokens, source, 1.0 / total) for _, source, tokens in pieces], [number for number, _, _ in pieces]


def load_corpus(config: Config, tokenizer: Any) -> CorpusBatches:
    """Return the batches of a config.

    Raises UserError as `split_documents` does, where the tokenizer has no EOS token, and where `corpus.max_epochs`
    would be exceeded.
    """
    train, held_out = split_documents(config)
    encoder = DocumentEncoder(tokenizer)
    if config.corpus.max_epochs is not None:
        available = {name: count_tokens(index, encoder) for name, index in train.items()}
        check_epochs(trained_tokens(config), shares(config), available, config.corpus.max_epochs)
    return CorpusBatches(config, encoder, train, held_out, fingerprint(tokenizer))


def split_documents(config: Config) -> tuple[dict[str, DocumentIndex], dict[str, DocumentIndex]]:
    """Walk through all sources; return the documents to train on and those held out, by the source's name.

    A document that says exactly what a held-out one says is not trained on either. Raises UserError where there are
    no sources, where one has nothing left, and as `index_documents` does. Needs no tokenizer.
    """
    corpus = config.corpus
    if not corpus.sources:
        raise UserError(
            "stage=pretrain needs documents: name a source, such as "
            "corpus.sources.books.path=package://lwz_ray/prompts/corpus.jsonl"
        )
    found = {
        name: index_documents(f"corpus.sources.{name}", source, corpus.on_bad_row)
        for name, source in corpus.sources.items()
    }
    if corpus.eval_path is not None:
        source = CorpusSourceConfig(path=corpus.eval_path)
        held_out = {HELD_OUT: index_documents("corpus.eval_path", source, corpus.on_bad_row)}
    else:
        held_out = {name: _last(index, corpus.held_out_documents) for name, index in found.items()}
        held_out = {name: index for name, index in held_out.items() if index.num_documents}
    seen = np.concatenate([np.empty(0, np.uint64), *(index.hashes for index in held_out.values())])
    train = {name: index.take(~np.isin(index.hashes, seen)) for name, index in found.items()}
    for name, index in train.items():
        if not index.num_documents:
            raise UserError(
                f"corpus.sources.{name}: its {found[name].num_documents} documents are all held out: give it more, "
                "name other documents with corpus.eval_path, or set corpus.held_out_documents=0"
            )
    return train, held_out


def shares(config: Config) -> dict[str, float]:
    """Return each source's share of the trained tokens."""
    weights = {name: source.weight for name, source in config.corpus.sources.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def budget(config: Config) -> TokenBudget:
    """Return when `stage=pretrain` is over."""
    return TokenBudget(config.steps, config.corpus.max_tokens)


def trained_tokens(config: Config) -> float:
    """Return the tokens of the whole stage, to within the first token of each piece, which is not trained."""
    return budget(config).tokens(config.corpus.sequences_per_step * config.model.max_length_tokens)


def count_tokens(index: DocumentIndex, encoder: DocumentEncoder) -> float:
    """Return the trained tokens of a source: counted, or for a large one estimated from documents spread over it."""
    chosen = np.arange(index.num_documents)
    if index.num_chars > COUNTED_CHARS:
        chosen = np.unique(np.linspace(0, index.num_documents - 1, SPREAD).astype(np.int64))
    tokens = sum(encoder.encode(index.text(int(i))).shape[0] - 1 for i in chosen)
    return tokens * index.num_chars / int(index.lengths[chosen].sum(dtype=np.int64))


def _last(index: DocumentIndex, num: int) -> DocumentIndex:
    return index.take(np.arange(max(0, index.num_documents - num), index.num_documents))
