"""Documents from files: what is found, what is refused and how it is said, and reading in any order."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lwz_ray.config_corpus import CorpusSourceConfig
from lwz_ray.corpus_index import DocumentIndex, index_documents
from lwz_ray.errors import UserError
from tests.corpus_parts import write_documents, write_lines


def index(path: object, on_bad_row: str = "error", column: str = "text") -> DocumentIndex:
    return index_documents("corpus.sources.a", CorpusSourceConfig(path=str(path), column=column), on_bad_row)


def texts(found: DocumentIndex) -> list[str]:
    return [found.text(i) for i in range(found.num_documents)]


def write_parquet(path: Path, rows: list[str | None], group: int) -> Path:
    pyarrow.parquet.write_table(
        pyarrow.table({"text": rows, "other": list(range(len(rows)))}), path, row_group_size=group
    )
    return path


def test_lines_are_found_by_their_place_in_the_file(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "eins"}\r\n\n{"text": "  "}\n{"text": "第二\u2028行"}\n{"text": "three"}'.encode())
    found = index(path)
    assert texts(found) == ["eins", "第二\u2028行", "three"]
    assert found.counts == {"read": 4, "documents": 3, "bad_rows": 0, "empty": 1}
    assert found.keys.tolist() == [0, 37, 62]
    assert (found.num_chars, found.text(1)) == (13, "第二\u2028行")


def test_parquet_is_read_by_row_groups_and_a_folder_by_names(tmp_path: Path):
    folder = tmp_path / "books"
    folder.mkdir()
    write_parquet(folder / "b.parquet", ["p1", "p2", "p3", "p4", "p5"], 2)
    (folder / "c.txt").write_text("A whole file\nis one document.\n")
    write_documents(folder / "a.jsonl", ["j1"])
    (folder / "notes.md").write_text("not a document")
    found = index(folder)
    assert texts(found) == ["j1", "p1", "p2", "p3", "p4", "p5", "A whole file\nis one document.\n"]
    # Three row groups, and everything else, which no place is far from.
    assert found.block_numbers().tolist() == [0, 1, 1, 2, 2, 3, 0]
    # Shuffled, the documents of a row group stay together: each group is read once an epoch.
    blocks = found.blocks[found.order(7, 0, 0, shuffle=True)].tolist()
    assert sum(a != b for a, b in pairwise(blocks)) == 3


def test_lines_of_several_files_are_shuffled_as_one(tmp_path: Path):
    for name in "ab":
        write_documents(tmp_path / f"{name}.jsonl", [f"{name}{i}" for i in range(40)])
    found = index(tmp_path)
    order = found.order(1, 0, 0, shuffle=True)
    # Were each file a block, one of them would come as a whole before the other.
    assert 10 < sum(found.text(int(i)).startswith("a") for i in order[:40]) < 30
    # The same texts as one file, and as one row group of a Parquet file, have the same order.
    whole = [found.text(i) for i in range(80)]
    (tmp_path / "elsewhere").mkdir()
    for other in (
        write_documents(tmp_path / "elsewhere" / "c.jsonl", whole),
        write_parquet(tmp_path / "elsewhere" / "d.parquet", [*whole], 100),
    ):
        assert index(other).order(1, 0, 0, shuffle=True).tolist() == order.tolist()


def test_of_many_parquet_files_one_row_group_is_in_memory_and_none_is_open(tmp_path: Path):
    for letter in "abcdefghijkl":
        write_parquet(tmp_path / f"{letter}.parquet", [letter * 100_000] * 3, 3)
    found = index(tmp_path)
    before = pyarrow.total_allocated_bytes()
    assert [found.text(i)[0] for i in range(0, 36, 3)] == list("abcdefghijkl")
    # A row group has 300,000 bytes; the library frees what it decoded one from a little later.
    assert 300_000 <= pyarrow.total_allocated_bytes() - before < 4 * 300_000
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [name for name in opened if name.startswith(str(tmp_path))]


def test_the_order_is_that_of_seed_epoch_and_source(tmp_path: Path):
    found = index(write_documents(tmp_path / "a.jsonl", [f"text {i}" for i in range(50)]))
    assert found.order(1, 0, 0, shuffle=False).tolist() == list(range(50))
    first = found.order(1, 0, 0, shuffle=True).tolist()
    assert sorted(first) == list(range(50))
    assert found.order(1, 0, 0, shuffle=True).tolist() == first
    others = [found.order(*numbers, shuffle=True).tolist() for numbers in ((2, 0, 0), (1, 1, 0), (1, 0, 1))]
    assert all(other != first for other in others)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON at column 2"),
        ("[1]", "a JSON object is needed, got list"),
        ({"txt": "a"}, "no column 'text' among ['txt']"),
        ({"text": None}, "text='None': a document is text"),
        ({"text": ["a"]}, """text="['a']": a document is text"""),
        # An emoji that was cut in two: JSON can hold it, no tokenizer takes it.
        ('{"text": "ab\\ud83d"}', "text holds half of a character at character 3"),
    ],
)
def test_a_bad_row_is_named_or_counted(row: object, reason: str, tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "good"}, row])
    with pytest.raises(UserError) as caught:
        index(path)
    assert str(caught.value).startswith(f"corpus.sources.a: {path}, line 2: {reason}")
    assert str(caught.value).endswith(
        "; correct it, name the column with corpus.sources.a.column, or leave such rows out with corpus.on_bad_row=skip"
    )
    assert index(path, "skip").counts == {"read": 2, "documents": 1, "bad_rows": 1, "empty": 0}


def test_what_holds_no_document_is_refused(tmp_path: Path):
    broken = tmp_path / "x.parquet"
    broken.write_text("no parquet")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty").mkdir()
    write_parquet(tmp_path / "y.parquet", ["a"], 1)
    cases = {
        "none.jsonl": "no such file",
        "a.csv": "of unknown kind; use .jsonl, .parquet, .txt, a folder, or hub:owner/name",
        "x.parquet": "no readable Parquet file",
        "latin.txt": "latin.txt: not UTF-8 at byte 4; correct it",
        "empty": "a folder without .jsonl, .parquet, .txt files",
        "blank.jsonl": r"holds no document \(2 empty\); name another source",
    }
    (tmp_path / "a.csv").write_text("a,b")
    write_documents(tmp_path / "blank.jsonl", ["", " "])
    for name, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            index(tmp_path / name)
        assert str(caught.value).startswith("corpus.sources.a: ")
    with pytest.raises(UserError, match=r"y.parquet': no column 'story' among \['other', 'text'\]"):
        index(tmp_path / "y.parquet", column="story")


def test_a_file_that_changed_while_the_run_went_on_is_not_trained_on(tmp_path: Path):
    path = write_documents(tmp_path / "a.jsonl", ["one", "two"])
    found = index(path)
    write_documents(tmp_path / "a.jsonl", ["one", "TWO"])
    assert found.text(0) == "one"
    with pytest.raises(UserError, match="document 2 is not what it was when the run began; put the old file back"):
        found.text(1)
    # A new look sees the new file: what was found is kept for a file that is as it was.
    assert texts(index(path)) == ["one", "TWO"]
    Path(path).unlink()
    with pytest.raises(UserError, match=r"document 1 is not what it was when the run began \(.*No such file"):
        found.text(0)
    rows = write_parquet(tmp_path / "b.parquet", ["one", "two", "three"], 1)
    found = index(rows)
    write_parquet(rows, ["one"], 1)
    with pytest.raises(UserError, match=r"corpus.sources.a: document 3 is not what it was when the run began"):
        found.text(2)


def test_a_parquet_file_that_breaks_off_is_named(tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", [f"a text {i}" * 50 for i in range(20)], 10)
    content = bytearray(path.read_bytes())
    second = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    start = second.dictionary_page_offset or second.data_page_offset
    content[start : start + second.total_compressed_size] = bytes(second.total_compressed_size)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        index(path)
    assert str(caught.value).startswith(f"corpus.sources.a: data source {str(path)!r}: broken after row 10 (")


def test_a_data_set_of_the_hub_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["h1", "h2"], "n": [1, 2]})
    asked = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return rows

    # The network is not asked for; the data set itself is a real one.
    monkeypatch.setattr(datasets, "load_dataset", load)
    found = index_documents("corpus.sources.h", CorpusSourceConfig(path="hub:a/b", split="x"), "error")
    assert (texts(found), asked) == (["h1", "h2"], [("a/b", "x")])
    assert found.hashes.dtype == np.uint64
