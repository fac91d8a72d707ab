"""From rows of chat logs to requests worth asking about; every row that goes elsewhere is counted under one reason.

rows ─▶ bad? ─▶ a request? ─▶ flagged ─▶ language ─▶ length ─▶ same again ─▶ a benchmark's ─▶ nearly again ─▶ candidate
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from lwz_ray.chat_logs import BadLogError, LoggedRequest, first_request, language_of, tell_format
from lwz_ray.config import Config
from lwz_ray.config_base import Language
from lwz_ray.config_curate import LogFormat
from lwz_ray.dedup import NearDuplicates, folded
from lwz_ray.errors import UserError
from lwz_ray.overlap import Hit, Overlap
from lwz_ray.sources import BadRow, Row, read_rows

REASONS = (
    "bad_rows", "no_request", "flagged", "other_language", "too_long", "duplicate", "overlap", "near_duplicate",
)  # fmt: skip
"""Why a row gives no candidate, in the order of the checks."""
MARKS = ("toxic", "redacted", "without_flags")
"""What else is counted of a source: `toxic` and `redacted` say why rows are flagged, `without_flags` has neither."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that the model is asked about."""

    id: str
    prompt: str
    language: Literal["en", "zh"]
    source: str
    """Path of the chat log."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that gave no candidate."""

    reason: str
    """One of REASONS."""
    prompt: str | None
    source: str
    place: str
    about: str = ""
    """What it repeats or overlaps with, or what is wrong with it."""


class LogSieve:
    """Goes through the sources of a config once, in order, and counts."""

    def __init__(self, config: Config, overlap: Overlap) -> None:
        """overlap: with the benchmarks whose requests must not be trained on."""
        self._config, self._logs, self.overlap = config, config.curate.chat_logs, overlap
        self._exact: set[bytes] = set()
        self._near = NearDuplicates(self._logs.minhash_threshold)
        self._ids: list[str] = []
        """Of the candidates, in their order, which is also that of the requests in `_near`."""
        self._taken: set[str] = set()
        self.counts: dict[str, Counter[str]] = {}
        """By source: `read`, REASONS and MARKS."""
        self.formats: dict[str, LogFormat] = {}
        self.hits: list[tuple[Hit, str, str]] = []
        """Overlaps with the source and place of the row."""

    def rows(self) -> Iterator[Candidate | LeftOut]:
        """Yield what becomes of each row, in order.

        Raises UserError with file and place for a bad row where `data.on_bad_row` is `error`, and for a source that is
        no chat log.
        """
        for path in self._logs.paths:
            counts = self.counts.setdefault(path, Counter())
            for row in islice(read_rows(path, self._logs.split), self._logs.max_rows):
                counts["read"] += 1
                found = self._sift(path, row, counts)
                counts[found.reason if isinstance(found, LeftOut) else "candidates"] += 1
                yield found

    def _sift(self, path: str, row: Row, counts: Counter[str]) -> Candidate | LeftOut:
        try:
            found = self._read(path, row)
        except BadLogError as error:
            if self._config.data.on_bad_row == "error":
                raise UserError(
                    f"{path}, {row.place}: {error}; correct it, or leave such rows out with data.on_bad_row=skip"
                ) from error
            return LeftOut("bad_rows", None, path, row.place, str(error))
        pieces = folded(found.text)

        def left_out(reason: str, about: str = "") -> LeftOut:
            return LeftOut(reason, found.text, path, row.place, about)

        if not pieces:
            return left_out("no_request")
        if self._is_flagged(found, counts):
            return left_out("flagged")
        language = language_of(found.declared, found.text)
        if language is None or language not in self._languages(path):
            return left_out("other_language", found.declared or "")
        if len(pieces) > self._logs.max_request_words:
            return left_out("too_long", f"{len(pieces)} words")
        if (digest := _digest(pieces)) in self._exact:
            return left_out("duplicate")
        self._exact.add(digest)
        if hits := self.overlap.find(pieces):
            self.hits += [(hit, path, row.place) for hit in hits]
            return left_out("overlap", ", ".join(f"{hit.benchmark} {hit.index}" for hit in hits))
        if (earlier := self._near.take(pieces)) is not None:
            return left_out("near_duplicate", self._ids[earlier])
        return Candidate(self._new_id(path, row.place, found), found.text, language, path)

    def _read(self, path: str, row: Row) -> LoggedRequest:
        if isinstance(row.content, BadRow):
            raise BadLogError(row.content.reason)
        if path not in self.formats:
            stated = self._logs.format
            self.formats[path] = tell_format(row.content, path) if stated == "auto" else stated
        return first_request(row.content, self.formats[path])

    def _is_flagged(self, found: LoggedRequest, counts: Counter[str]) -> bool:
        marks = (("toxic", found.toxic), ("redacted", found.redacted), ("without_flags", not found.has_flags))
        counts.update(name for name, is_so in marks if is_so)
        return self._logs.drop_flagged and (found.toxic or found.redacted)

    def _languages(self, path: str) -> Collection[Language]:
        named = self._logs.languages
        own = named.wildchat if self.formats[path] == "wildchat" else named.lmsys
        return self._config.data.languages if own is None else own

    def _new_id(self, path: str, place: str, found: LoggedRequest) -> str:
        """Return an id that no other candidate has, the conversation's where it is one; keep it by position."""
        own = found.conversation_id or f"{self._logs.paths.index(path)}-{place.split()[-1]}"
        name = stem = f"{self.formats[path]}-{own}"
        again = 1
        while name in self._taken:
            again += 1
            name = f"{stem}-{again}"
        self._taken.add(name)
        self._ids.append(name)
        return name


def _digest(pieces: tuple[str, ...]) -> bytes:
    """Return 16 bytes that stand for the words: those of a million requests fit where the words would not."""
    return hashlib.blake2b("\0".join(pieces).encode(), digest_size=16).digest()
