"""Prompts from files: columns, ranges, languages, counts, order, and what is said of bad rows."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lwz_ray.config import ColumnsConfig, DataConfig
from lwz_ray.data import PromptOrder, load_prompts
from lwz_ray.errors import UserError
from lwz_ray.sources import local_file


def source(path: Path | str, **values: object) -> DataConfig:
    columns = {name: name for name in ("prompt", "length_range", "language", "id", "reference")}
    columns |= values.pop("columns", {})  # type: ignore[arg-type]
    given = {
        "path": str(path),
        "split": "train",
        "columns": ColumnsConfig(**columns),  # type: ignore[arg-type]
        "languages": ["en", "zh"],
        "on_bad_row": "error",
        "max_prompt_tokens": 100,
        "shuffle": True,
    }
    return DataConfig.model_validate(given | values)


def write(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "p.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return file


def load(data: DataConfig, on_missing_range: str = "drop"):
    return load_prompts(data, on_missing_range, lambda p: len(p.text))  # type: ignore[arg-type]


def error_of(data: DataConfig, on_missing_range: str = "drop") -> str:
    with pytest.raises(UserError) as caught:
        load(data, on_missing_range)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns_become_prompts(tmp_path: Path):
    file = write(
        tmp_path,
        {"prompt": "A story", "length_range": [100, 200], "language": "en", "id": "s1"},
        {"prompt": "写一篇故事", "length_range": {"range": [300, 400]}},
        {"prompt": "A report", "length_range": "[500, 600]", "language": "English", "id": 7},
        {"prompt": "A letter of about 800 words"},
    )
    found = load(source(file))
    assert [(p.prompt_id, p.language, p.length_range, p.index) for p in found.prompts] == [
        ("s1", "en", (100, 200), 0),
        ("1", "zh", (300, 400), 1),
        ("7", "en", (500, 600), 2),
        ("3", "en", (720, 880), 3),
    ]
    assert found.counts == {
        "read": 4,
        "kept": 4,
        "bad_rows": 0,
        "other_language": 0,
        "unfulfillable": 0,
        "missing_range": 0,
        "too_long": 0,
        "range_from_request": 1,
        "without_range": 0,
    }


def test_a_reference_comes_along(tmp_path: Path):
    file = write(
        tmp_path,
        {"prompt": "A story", "length_range": [100, 200], "reference": "It was night."},
        {"prompt": "A letter of about 800 words", "reference": "Dear Sir"},
        {"prompt": "A poem", "length_range": [10, 20], "reference": None},
        {"prompt": "A report", "length_range": [10, 20]},
    )
    assert [p.reference for p in load(source(file)).prompts] == ["It was night.", "Dear Sir", None, None]
    assert [p.reference for p in load(source(file, columns={"reference": None})).prompts] == [None] * 4
    renamed = write(tmp_path, {"prompt": "A story", "length_range": [1, 2], "baseline": "Once."})
    assert [p.reference for p in load(source(renamed, columns={"reference": "baseline"})).prompts] == ["Once."]
    missing = error_of(source(renamed, columns={"reference": "answer"}))
    assert "data.columns.reference='answer': no row" in missing


@pytest.mark.parametrize("bad", ["", " \n", 7, ["It was night."]])
def test_a_reference_is_text(tmp_path: Path, bad: object):
    file = write(tmp_path, {"prompt": "A story", "length_range": [1, 2], "reference": bad})
    assert "line 1: reference=" in (said := error_of(source(file)))
    assert "a reference needs text, or null where there is none" in said
    file = write(tmp_path, {"prompt": "A", "length_range": [1, 2], "reference": bad}, {"prompt": "B"})
    counts = load(source(file, on_bad_row="skip"), "abstain").counts
    assert (counts["kept"], counts["bad_rows"]) == (1, 1)


def test_every_row_left_out_is_counted(tmp_path: Path):
    file = write(
        tmp_path,
        {"prompt": "kept", "length_range": [1, 2]},
        "not json",
        {"prompt": "un récit", "language": "fr"},
        {"prompt": "write from the attachment", "length_range": [0, 0]},
        {"prompt": "a story"},
        "",
        {"prompt": "x" * 101, "length_range": [1, 2]},
    )
    counts = load(source(file, on_bad_row="skip")).counts
    assert (counts["read"], counts["kept"]) == (6, 1)
    left_out = ("bad_rows", "other_language", "unfulfillable", "missing_range", "too_long")
    assert [counts[k] for k in left_out] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("row", "place_and_reason"),
    [
        ('{"prompt": "x"', "line 2: not JSON at column 15 (Expecting ',' delimiter)"),
        ("[1]", "line 2: a JSON object is needed, got list"),
        ({"text": "x"}, "line 2: no column 'prompt' among ['text'] (data.columns.prompt names it)"),
        ({"prompt": " "}, "line 2: prompt=' ': a request needs text"),
        ({"prompt": 5}, "line 2: prompt=5: a request needs text"),
        ('{"prompt": "ab\\ud83d"}', "line 2: prompt has half a character at place 3, which no tokenizer takes"),
        ({"prompt": "x", "length_range": [5]}, "line 2: length_range=[5]: needs two integers [low, high]"),
        ({"prompt": "x", "length_range": [5, True]}, "line 2: length_range=[5, True]: needs two integers [low, high]"),
        ({"prompt": "x", "length_range": [9, 5]}, "line 2: length_range=[9, 5]: needs 0 < low <= high"),
        ({"prompt": "x", "length_range": "many"}, "line 2: length_range='many': no JSON (Expecting value)"),
        ({"prompt": "x", "length_range": [1, 2], "id": "a"}, "line 2: id='a' is already the id of line 1"),
    ],
)
def test_bad_rows_name_file_line_and_reason(tmp_path: Path, row: object, place_and_reason: str):
    file = write(tmp_path, {"prompt": "good", "length_range": [1, 2], "id": "a"}, row)
    message = error_of(source(file))
    assert message.startswith(f"{file}, {place_and_reason}")
    assert message.endswith("correct it, or leave such rows out with data.on_bad_row=skip")
    assert load(source(file, on_bad_row="skip")).counts["bad_rows"] == 1


def test_bytes_that_are_no_utf8(tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prompt": "\xff"}\n')
    assert error_of(source(file)).startswith(f"{file}, line 1: not UTF-8 at byte 13; ")


def test_missing_ranges_by_config(tmp_path: Path):
    file = write(tmp_path, {"prompt": "a story"}, {"prompt": "a tale", "length_range": [1, 2]})
    assert error_of(source(file), "error") == (
        f"{file}, line 1: no length range in the data and none in the request 'a story'; add one, or set "
        "rewards.length.on_missing_range=drop or abstain"
    )
    assert load(source(file), "drop").counts["missing_range"] == 1
    kept = load(source(file), "abstain")
    assert ([p.length_range for p in kept.prompts], kept.counts["without_range"]) == ([None, (1, 2)], 1)


def test_empty_sources(tmp_path: Path):
    file = write(tmp_path)
    assert error_of(source(file)).startswith(f"{file} is empty: 0 of 0 rows; ")
    file = write(tmp_path, {"prompt": "a story"})
    assert error_of(source(file)).startswith(f"{file} is empty: 0 of 1 rows (1 missing_range); ")


def test_a_mapped_column_must_exist(tmp_path: Path):
    file = write(tmp_path, {"request": "a story of 500 words", "words": [1, 2]})
    columns = {"prompt": "request", "length_range": "wordz"}
    assert error_of(source(file, columns=columns)) == (
        f"data.columns.length_range='wordz': no row of {file} has it, there are request, words"
    )
    found = load(source(file, columns={"prompt": "request", "length_range": "words", "language": None, "id": None}))
    assert found.prompts[0].length_range == (1, 2)


def test_parquet(tmp_path: Path):
    file = tmp_path / "p.parquet"
    rows = {"prompt": ["写一篇故事", "a story"], "length_range": [[300, 400], None], "id": ["a", "b"]}
    pq.write_table(pa.table(rows), file)
    assert [p.length_range for p in load(source(file), "abstain").prompts] == [(300, 400), None]
    assert error_of(source(file), "error").startswith(f"{file}, row 2: no length range")
    file.write_bytes(b"PAR1")
    assert "no readable Parquet file" in error_of(source(file))


def test_other_sources(tmp_path: Path):
    assert error_of(source(tmp_path / "no.jsonl")) == f"data source '{tmp_path}/no.jsonl': no such file"
    (tmp_path / "p.csv").write_text("prompt\n")
    assert "of unknown kind; use a .jsonl or .parquet file, or hub:owner/name" in error_of(source(tmp_path / "p.csv"))
    assert "write package://<package>/<file>" in error_of(source("package://no_such_package/x.jsonl"))
    assert "write package://<package>/<file>" in error_of(source("package://lwz_ray/../secret.jsonl"))
    assert local_file("package://lwz_ray/records.py").name == "records.py"


def test_a_hub_data_set_offline_is_one_line():
    message = error_of(source("hub:nobody/nothing"))
    assert message.startswith("data source 'hub:nobody/nothing', split 'train': cannot be loaded (")
    assert message.endswith("without a network name a local .jsonl or .parquet file")


def test_order_is_a_function_of_seed_and_position():
    order = PromptOrder(5, seed=3, shuffle=True)
    epochs = [[order.index(e * 5 + i) for i in range(5)] for e in range(3)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    resumed = PromptOrder(5, seed=3, shuffle=True)
    assert [resumed.index(i) for i in (12, 3, 7)] == [epochs[2][2], epochs[0][3], epochs[1][2]]
    assert [PromptOrder(5, seed=4, shuffle=True).index(i) for i in range(15)] != [i for epoch in epochs for i in epoch]


def test_order_without_shuffling_and_its_limits():
    order = PromptOrder(3, seed=0, shuffle=False)
    assert [order.index(i) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="position=-1: counted from 0"):
        order.index(-1)
    with pytest.raises(ValueError, match="num_prompts=0"):
        PromptOrder(0, seed=0, shuffle=False)
