"""Requests that are those of a benchmark, word for word in large part: trained on, they would spoil its scores."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lwz_ray.dedup import folded
from lwz_ray.errors import UserError
from lwz_ray.sources import HUB, BadRow, read_rows
from lwz_ray.text import ngrams

COLUMNS = ("query", "question", "prompt")
"""Of the request, in WritingBench, Arena-Write and LongBench-Write."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A benchmark's request that stands in another text."""

    benchmark: str
    index: int
    """Of the request in its file, from 0."""
    share: float
    """Of its n-grams, at least the limit and at most 1."""


class Overlap:
    """Finds benchmark requests in texts by their word n-grams, letter case and punctuation aside."""

    def __init__(self, benchmarks: Mapping[str, Sequence[str]], ngram: int, share: float) -> None:
        """benchmarks: requests by the benchmark's name. ngram: words (Chinese: characters) per n-gram.

        share: of a request's different n-grams, from which a text overlaps with it. A request of fewer words than one
        n-gram overlaps only with its own words: "write a story" stands in too many others.
        """
        self._ngram, self._share = ngram, share
        self.sizes = {name: len(requests) for name, requests in benchmarks.items()}
        self._where: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
        self._num: dict[tuple[str, int], int] = {}
        self._short: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
        for name, requests in benchmarks.items():
            for index, text in enumerate(requests):
                self._add((name, index), folded(text))

    def _add(self, place: tuple[str, int], pieces: tuple[str, ...]) -> None:
        grams = set(ngrams(pieces, self._ngram))
        if not grams:
            self._short[pieces].append(place)
            return
        self._num[place] = len(grams)
        for gram in grams:
            self._where[gram].append(place)

    def find(self, pieces: Sequence[str]) -> list[Hit]:
        """Return what a text overlaps with, by benchmark and place; pieces: as `dedup.folded` gives them."""
        shared: Counter[tuple[str, int]] = Counter()
        for gram in set(ngrams(pieces, self._ngram)):
            shared.update(self._where.get(gram, ()))
        hits = [Hit(*place, count / self._num[place]) for place, count in shared.items()]
        hits = [hit for hit in hits if hit.share >= self._share]
        hits += [Hit(*place, 1.0) for place in self._short.get(tuple(pieces), ())]
        return sorted(hits, key=lambda hit: (hit.benchmark, hit.index))


def read_benchmarks(files: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the requests of each benchmark's file, of the first of `COLUMNS` that a row has.

    Raises UserError with file and line for a row without a request: an unread one would look like no overlap.
    """
    return {name: _read(name, path) for name, path in files.items()}


def _read(name: str, path: str) -> list[str]:
    key = f"curate.chat_logs.benchmarks.{name}"
    if path.startswith(HUB):
        raise UserError(f"{key}={path!r}: name a .jsonl or .parquet file of its requests")
    found: list[str] = []
    try:
        for row in read_rows(path, "train"):
            if isinstance(row.content, BadRow):
                raise UserError(f"{path}, {row.place}: {row.content.reason}")
            text = next((row.content[column] for column in COLUMNS if column in row.content), None)
            if not isinstance(text, str) or not text.strip():
                raise UserError(
                    f"{path}, {row.place}: no request in a column {', '.join(COLUMNS)}, there are "
                    f"{', '.join(sorted(row.content))}"
                )
            found.append(text)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not found:
        raise UserError(f"{key}: {path} holds no request")
    return found
