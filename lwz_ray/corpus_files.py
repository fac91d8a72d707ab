"""Files of documents: walked through once, then read document by document in any order.

A document is known by a key, one integer: where its file is in the source, and where it stands in that file. Of a
.jsonl file the place is the byte offset of the line, so that any document is one seek away.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from lwz_ray.errors import UserError
from lwz_ray.sources import HUB, BadRow, load_hub, local_file, parse_line
from lwz_ray.text import half_character

KINDS = (".jsonl", ".parquet", ".txt")
_FILE_BITS = 44
"""A place in a file is below 2**44: 16 TiB."""
ANYWHERE = -1
"""The block of a document that is as near as any other of its source, in whichever file it is."""


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """A document, or a row that is none, as the walk meets it."""

    key: int
    block: int
    """Of a Parquet file: the row group, whose documents are read together. Of every other kind: ANYWHERE."""
    place: str
    text: str | BadRow


class DocumentFile(Protocol):
    """One file of documents."""

    def walk(self) -> Iterator[FoundDocument]:
        """Yield every row in the order of the file, one in memory at a time."""
        ...

    def read(self, key: int) -> str | BadRow:
        """Return the text of one document."""
        ...


class DocumentFiles:
    """The files of a source, in the order of their names, as one."""

    def __init__(self, path: str, split: str, column: str) -> None:
        """path: a file, a folder of files, or hub:owner/name; split: read only for the hub; column: of the text.

        Raises UserError where there is nothing to read.
        """
        if path.startswith(HUB):
            self._files: list[DocumentFile] = [_HubRows(path, split, column)]
        else:
            last = _LastGroup()
            self._files = [_open(file, column, last) for file in local_files(path)]

    def walk(self) -> Iterator[FoundDocument]:
        """Yield every row of every file."""
        for number, file in enumerate(self._files):
            first = number << _FILE_BITS
            for row in file.walk():
                block = ANYWHERE if row.block == ANYWHERE else first + row.block
                yield FoundDocument(first + row.key, block, row.place, row.text)

    def read(self, key: int) -> str | BadRow:
        """Return the text of one document by the key that `walk` gave it; BadRow where it cannot be read any more."""
        try:
            return self._files[key >> _FILE_BITS].read(key & ((1 << _FILE_BITS) - 1))
        except (OSError, ValueError, IndexError) as error:  # gone, not readable now, or another Parquet file
            return BadRow(_one_line(error))


def text_of(content: dict[str, Any] | BadRow, column: str) -> str | BadRow:
    """Return the text of a row, or why it has none."""
    if isinstance(content, BadRow):
        return content
    if column not in content:
        return BadRow(f"no column {column!r} among {sorted(content)}")
    value = content[column]
    if not isinstance(value, str):
        return BadRow(f"{column}={str(value)[:60]!r}: a document is text")
    if (at := half_character(value)) is not None:
        return BadRow(f"{column} holds half of a character at character {at}")
    return value


def local_files(path: str) -> list[Path]:
    """Return the files of a local source; raises UserError where there are none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return [local_file(path)]
    files = sorted(file for file in folder.iterdir() if file.suffix in KINDS and file.is_file())
    if not files:
        raise UserError(f"data source {path!r}: a folder without {', '.join(KINDS)} files")
    return files


def _open(file: Path, column: str, last: "_LastGroup") -> DocumentFile:
    if file.suffix == ".jsonl":
        return _JsonLines(file, column)
    if file.suffix == ".parquet":
        return _Parquet(file, column, last)
    if file.suffix == ".txt":
        return _PlainText(file)
    raise UserError(f"data source {str(file)!r}: of unknown kind; use {', '.join(KINDS)}, a folder, or hub:owner/name")


class _JsonLines:
    """A row a line; the key is the line's first byte."""

    def __init__(self, file: Path, column: str) -> None:
        self._path, self._column = file, column

    def walk(self) -> Iterator[FoundDocument]:
        start = 0
        with self._path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                if raw.strip():
                    text = text_of(parse_line(raw), self._column)
                    yield FoundDocument(start, ANYWHERE, f"{self._path}, line {number}", text)
                start += len(raw)

    def read(self, key: int) -> str | BadRow:
        with self._path.open("rb") as file:
            file.seek(key)
            return text_of(parse_line(file.readline()), self._column)


class _LastGroup:
    """The row group that was read last, of all the Parquet files of a source: no more than one is in memory."""

    def __init__(self) -> None:
        self._place: tuple[Path, int] | None = None
        self._column: Any = None

    def column(self, file: Path, group: int, name: str) -> Any:
        """Return a column of a row group."""
        import pyarrow.parquet

        if self._place != (file, group):
            self._place = self._column = None
            with pyarrow.parquet.ParquetFile(file) as table:
                self._column = table.read_row_group(group, columns=[name], use_threads=False).column(0)
            self._place = (file, group)
        return self._column


class _Parquet:
    """A row a document; the key is its number, and a row group is a block. A file is open only while it is read."""

    def __init__(self, file: Path, column: str, last: _LastGroup) -> None:
        import pyarrow
        import pyarrow.parquet

        self._path, self._column, self._last = file, column, last
        self._errors = (pyarrow.ArrowException, OSError)
        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                names = table.schema_arrow.names
                sizes = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
        except self._errors as error:
            raise UserError(f"data source {str(file)!r}: no readable Parquet file ({_one_line(error)})") from error
        if column not in names:
            raise UserError(f"data source {str(file)!r}: no column {column!r} among {sorted(names)}")
        self._starts = [0, *accumulate(sizes)]

    def walk(self) -> Iterator[FoundDocument]:
        number = 0
        try:
            for number, (group, value) in enumerate(self._values(), start=1):
                text = text_of({self._column: value}, self._column)
                yield FoundDocument(number - 1, group, f"{self._path}, row {number}", text)
        except self._errors as error:
            words = f"broken after row {number} ({_one_line(error)})"
            raise UserError(f"data source {str(self._path)!r}: {words}") from error

    def read(self, key: int) -> str | BadRow:
        group = bisect_right(self._starts, key) - 1
        rows = self._last.column(self._path, group, self._column)
        return text_of({self._column: rows[key - self._starts[group]].as_py()}, self._column)

    def _values(self) -> Iterator[tuple[int, Any]]:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(self._path) as table:
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(batch_size=64, row_groups=[group], columns=[self._column]):
                    for value in batch.column(0).to_pylist():
                        yield group, value


class _PlainText:
    """A whole file is one document."""

    def __init__(self, file: Path) -> None:
        self._path = file

    def walk(self) -> Iterator[FoundDocument]:
        yield FoundDocument(0, ANYWHERE, str(self._path), self.read(0))

    def read(self, key: int) -> str | BadRow:
        try:
            return self._path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            return BadRow(f"not UTF-8 at byte {error.start + 1}")


class _HubRows:
    """A data set of the hub; it lies in memory-mapped files, where every row is as near as the next."""

    def __init__(self, path: str, split: str, column: str) -> None:
        self._path, self._column = path, column
        self._rows = load_hub(path, split)
        if column not in self._rows.column_names:
            raise UserError(f"data source {path!r}: no column {column!r} among {sorted(self._rows.column_names)}")
        self._rows = self._rows.select_columns([column])

    def walk(self) -> Iterator[FoundDocument]:
        for number, content in enumerate(self._rows):
            yield FoundDocument(number, ANYWHERE, f"{self._path}, row {number + 1}", text_of(content, self._column))

    def read(self, key: int) -> str | BadRow:
        return text_of(self._rows[key], self._column)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
