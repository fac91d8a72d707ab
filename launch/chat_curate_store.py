"""The files of `recipe=chat_logs` in a run folder.

curated/candidates-KEY.jsonl  requests that passed the sieve, written whole when every row has been read
curated/sieve-KEY.json        counts of rows and overlaps; it is there when the candidates are whole
curated/decided-KEY.jsonl     one line a candidate: what became of it, as it is decided
contamination.json            which rows overlap with which benchmark requests, where benchmarks are named
requests.jsonl                what stage=rl reads, written whole at the end

KEY is a hash of the settings and files that shape the lines, so that a resumed run with other settings begins anew.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.chat_open import weights_identity
from launch.files import append_line, complete_lines, iter_json_lines, read_json, replacing, to_json, write_json
from lwz_ray.chat_logs_sieve import Candidate
from lwz_ray.config import Config
from lwz_ray.range_rules import Limits, need_question, range_question
from lwz_ray.sources import HUB, local_file

REQUESTS = "requests.jsonl"
CONTAMINATION = "contamination.json"


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of one candidate."""

    id: str
    outcome: str
    """`kept`, or why it is left out."""
    length_range: tuple[int, int] | None
    range_from: str | None
    """request | model; None where it is not kept."""
    why: str
    """In words: the model's reason, or what was wrong."""
    unreadable: int
    """Replies to it that could not be read."""


class ChatCurateStore:
    """Keeps what is done; a line that a kill cut short is dropped and its work done again."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        parts = folder / "curated"
        parts.mkdir(exist_ok=True)
        sieve, asking = sieve_key(config), asking_key(config)
        self._candidates, self._sieve = parts / f"candidates-{sieve}.jsonl", parts / f"sieve-{sieve}.json"
        self._decided = parts / f"decided-{asking}.jsonl"

    def read_sieve(self) -> dict[str, Any] | None:
        """Return the counts of the sieve, None where it has not gone through every row."""
        return read_json(self._sieve) if self._sieve.exists() and self._candidates.exists() else None

    @contextmanager
    def new_candidates(self) -> Iterator[Any]:
        """Open the candidates for writing: their file appears when the block ends well."""
        self._sieve.unlink(missing_ok=True)
        with replacing(self._candidates) as file:
            yield lambda candidate: file.write(to_json(candidate.as_dict()) + "\n")

    def finish_sieve(self, found: Mapping[str, Any]) -> None:
        """Keep what the sieve counted, after `new_candidates`."""
        write_json(self._sieve, found)

    def write_contamination(self, report: Mapping[str, Any] | None) -> None:
        """Write the overlaps for a reader, also where an earlier attempt found them; None: no benchmark is named."""
        path = self.folder / CONTAMINATION
        if report is None:
            path.unlink(missing_ok=True)  # what other settings left
        else:
            write_json(path, report)

    def candidates(self) -> Iterator[Candidate]:
        """Yield the candidates in order, one line in memory at a time."""
        return (Candidate(**row) for row in iter_json_lines(self._candidates))

    def read_decided(self) -> dict[str, Decided]:
        """Return what is decided, by id."""
        rows = complete_lines(self._decided)
        return {row["id"]: Decided(**{**row, "length_range": _pair(row["length_range"])}) for row in rows}

    def add_decided(self, decided: Decided) -> None:
        append_line(self._decided, asdict(decided))

    def publish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the requests whole."""
        with replacing(self.folder / REQUESTS) as file:
            file.writelines(to_json(row) + "\n" for row in rows)


def sieve_key(config: Config) -> str:
    """Return a short hash of everything that shapes the candidates, files included."""
    logs, data = config.curate.chat_logs, config.data
    names = (
        "paths", "split", "format", "languages", "max_rows", "max_request_words", "minhash_threshold", "drop_flagged",
        "benchmarks", "overlap_ngram", "overlap_share",
    )  # fmt: skip
    tree = logs.model_dump(mode="json")
    files = [_state(path) for path in (*logs.paths, *logs.benchmarks.values())]
    return _hash({name: tree[name] for name in names} | {"data": [data.languages, data.on_bad_row], "files": files})


def asking_key(config: Config) -> str:
    """Return a short hash of everything that shapes the decisions: candidates, questions, and who is asked."""
    logs, judge = config.curate.chat_logs, config.judge
    if logs.asked == "endpoint":
        who = [judge.base_url, judge.model, judge.structured_output]
    else:
        who = [config.model.path, config.model.max_length_tokens, config.actors.dtype]
        who += weights_identity(Path(config.model.path))
    limits = Limits.of(logs)
    questions = [need_question("", limits).key, range_question("", limits).key]
    attempts = [logs.max_attempts, logs.max_reply_tokens, config.seed]
    return _hash({"sieve": sieve_key(config), "who": who, "questions": questions, "attempts": attempts})


def _state(path: str) -> list[Any]:
    """Return what tells whether a file is another one than before; a hub data set is told by its name alone."""
    if path.startswith(HUB):
        return [path]
    stat = local_file(path).stat()
    return [path, stat.st_size, stat.st_mtime_ns]


def _pair(value: list[int] | None) -> tuple[int, int] | None:
    return None if value is None else (value[0], value[1])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
