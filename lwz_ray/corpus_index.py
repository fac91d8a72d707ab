"""The documents of a source, found by one walk: where each is, what it says in eight bytes, and what was left out."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from lwz_ray.config_corpus import CorpusSourceConfig
from lwz_ray.corpus_files import DocumentFiles, FoundDocument, local_files
from lwz_ray.errors import UserError
from lwz_ray.sources import HUB, BadRow


@dataclass(frozen=True, slots=True, eq=False)
class DocumentIndex:
    """Documents of one source; in memory are 28 bytes of each, never its text."""

    name: str
    """What messages call the source."""
    files: DocumentFiles
    keys: np.ndarray
    """int64 [num_documents], in the order of the files"""
    blocks: np.ndarray
    """int64 [num_documents]: documents of one block are read together, and stay together when they are shuffled"""
    hashes: np.ndarray
    """uint64 [num_documents], of the texts"""
    lengths: np.ndarray
    """int32 [num_documents], in characters"""
    counts: dict[str, int] = field(default_factory=dict)
    """read = documents + bad_rows + empty"""

    @property
    def num_documents(self) -> int:
        return int(self.keys.shape[0])

    @property
    def num_chars(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    def take(self, chosen: np.ndarray) -> "DocumentIndex":
        """Return the index of some of the documents. chosen: int64 or bool, as numpy indexes by."""
        columns = {name: getattr(self, name)[chosen] for name in ("keys", "blocks", "hashes", "lengths")}
        return replace(self, **columns)

    def text(self, i: int) -> str:
        """Read document i; raises UserError where the file is no longer what the walk found."""
        text = self.files.read(int(self.keys[i]))
        if isinstance(text, BadRow) or _hash(text) != int(self.hashes[i]):
            reason = f" ({text.reason})" if isinstance(text, BadRow) else ""
            raise UserError(
                f"{self.name}: document {i + 1} is not what it was when the run began{reason}; put the old file back "
                "and continue with run.resume=auto"
            )
        return text

    def block_numbers(self) -> np.ndarray:
        """Return int64 [num_documents], 0 … num_blocks - 1: all that an order depends on of where documents are."""
        return np.unique(self.blocks, return_inverse=True)[1]

    def order(self, seed: int, epoch: int, number: int, shuffle: bool) -> np.ndarray:
        """Return int64 [num_documents]: the order of one epoch, the same for the same numbers.

        number: of the source. Blocks are shuffled, and the documents within each: so a row group of a Parquet file is
        read once an epoch; a source without such files has one block, and this is a permutation like any other.
        """
        if not shuffle:
            return np.arange(self.num_documents)
        rng = np.random.default_rng([seed, number, epoch])
        block = self.block_numbers()
        rank = rng.permutation(int(block.max()) + 1)[block]
        return np.lexsort((rng.random(self.num_documents), rank))


def index_documents(name: str, source: CorpusSourceConfig, on_bad_row: str) -> DocumentIndex:
    """Walk through a source once; in one process the answer is kept until a file changes.

    name: what messages call it, the dotted key of the config. Raises UserError with file, place and reason for a bad
    row where `on_bad_row` is `error`, for a source that cannot be read, and for one without a document.
    """
    try:
        files = [] if source.path.startswith(HUB) else local_files(source.path)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    state = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _walk(name, source.path, source.split, source.column, on_bad_row, state)


@lru_cache(maxsize=64)
def _walk(name: str, path: str, split: str, column: str, on_bad_row: str, _state: tuple[object, ...]) -> DocumentIndex:
    try:
        files = DocumentFiles(path, split, column)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    keys, blocks, hashes, lengths = array("q"), array("q"), array("Q"), array("i")
    counts = {"read": 0, "documents": 0, "bad_rows": 0, "empty": 0}
    for row in _rows(name, files):
        counts["read"] += 1
        if isinstance(row.text, BadRow):
            if on_bad_row == "error":
                raise UserError(
                    f"{name}: {row.place}: {row.text.reason}; correct it, name the column with {name}.column, or leave "
                    "such rows out with corpus.on_bad_row=skip"
                )
            counts["bad_rows"] += 1
        elif not row.text.strip():
            counts["empty"] += 1
        else:
            counts["documents"] += 1
            keys.append(row.key)
            blocks.append(row.block)
            hashes.append(_hash(row.text))
            lengths.append(len(row.text))
    if not keys:
        lost = ", ".join(f"{counts[k]} {k}" for k in ("bad_rows", "empty") if counts[k])
        raise UserError(f"{name}: {path} holds no document" + (f" ({lost})" if lost else "") + "; name another source")
    whole = (np.frombuffer(keys, np.int64), np.frombuffer(blocks, np.int64))
    return DocumentIndex(
        name, files, *whole, np.frombuffer(hashes, np.uint64), np.frombuffer(lengths, np.int32), counts
    )


def _rows(name: str, files: DocumentFiles) -> Iterator[FoundDocument]:
    try:
        yield from files.walk()
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
