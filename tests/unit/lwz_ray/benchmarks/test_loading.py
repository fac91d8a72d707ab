"""The three published formats, and one clear line for each thing that can be wrong with a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lwz_ray.benchmarks.loading import check_texts, load_benchmark
from lwz_ray.benchmarks.records import BANDS
from lwz_ray.errors import UserError
from tests.benchmark_parts import benchmark_config, criterion_row, length_benchmark, write_lines, written

LONGBENCH = [
    {"prompt": "Write about rain.", "type": "Essay", "length": 100},
    {"prompt": "写一篇关于雨的文章", "type": "Story", "length": 2000},
]


def writingbench_row(index: int, *names: str, **changes: Any) -> dict[str, Any]:
    base = {"index": index, "domain1": "Law", "domain2": "Contract", "lang": "en", "query": f"Query {index}"}
    return base | {"checklist": [criterion_row(name) for name in names]} | changes


def arena_row(idx: int, **changes: Any) -> dict[str, Any]:
    return {"idx": idx, "question": f"Question {idx}", "type": "Essay", "length": 500} | changes


def answer(idx: int, text: str = "An answer.") -> dict[str, Any]:
    return {"idx": idx, "baseline_response": text}


def test_longbench_write(tmp_path: Path) -> None:
    config = benchmark_config("longbench_write", write_lines(tmp_path / "l.jsonl", LONGBENCH))
    found = load_benchmark(config)
    assert [(r.request_id, r.language, r.required_words) for r in found.requests] == [
        ("0", "en", 100),
        ("1", "zh", 2000),
    ]
    assert found.requests[1].labels == {"type": "Story"}
    assert (found.num_whole, found.complete) == (120, False)
    whole = write_lines(tmp_path / "whole.jsonl", LONGBENCH * 60)
    assert load_benchmark(benchmark_config("longbench_write", whole)).complete
    assert found.positions == {"0": 0, "1": 1}
    few = load_benchmark(config.model_copy(update={"num_requests": 1}))
    assert (len(few.requests), few.num_in_file, few.complete) == (1, 2, False)
    assert few.requests[0].digest == found.requests[0].digest != found.requests[1].digest


def test_writingbench_with_its_subsets(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "all.jsonl", [writingbench_row(7, "tone", "depth"), writingbench_row(9, "form")])
    folder = tmp_path / "requirement"
    for name, members, criteria in (
        ("style", [7, 9], {7: ["tone"], 9: []}),
        ("format", [9], {9: ["form"]}),
        ("length", [7], {}),
    ):
        write_lines(folder / name / f"{name}_subset.jsonl", [writingbench_row(i, "any") for i in members])
        rows = [writingbench_row(i, *names, extra=1) for i, names in criteria.items()]
        write_lines(folder / name / f"{name}_subset_C.jsonl", rows or [writingbench_row(9, "form")])
    config = benchmark_config("writingbench", path, requirements=str(folder))
    first, second = load_benchmark(config).requests
    assert (first.request_id, first.required_words) == ("7", None)
    assert first.labels == {"domain1": "Law", "domain2": "Contract"}
    assert [c.name for c in first.criteria] == ["tone", "depth"]
    assert first.criteria[0].description == "How good is the tone?"
    assert first.criteria[0].bands == {band: f"tone {band}" for band in BANDS}
    assert first.requirements == {"style": ("tone",), "length": ()}
    assert second.requirements == {"style": (), "format": ("form",)}
    assert load_benchmark(config.model_copy(update={"requirements": None})).requests[0].requirements == {}
    # Scores on other criteria are scores of another request.
    assert replace(first, criteria=second.criteria).digest != first.digest
    assert replace(first, criteria=first.criteria[:1]).digest != first.digest

    write_lines(folder / "style" / "style_subset_C.jsonl", [writingbench_row(7, "mood")])
    with pytest.raises(UserError, match=r"style_subset_C.jsonl: criterion 'mood' of index 7 is none of that request's"):
        load_benchmark(config)
    write_lines(folder / "style" / "style_subset.jsonl", [writingbench_row(8, "any")])
    with pytest.raises(UserError, match=r"style_subset.jsonl: index 8 is no request of .*all.jsonl"):
        load_benchmark(config)
    (folder / "style" / "style_subset_C.jsonl").unlink()
    with pytest.raises(UserError, match=r"no file .*style_subset_C.jsonl"):
        load_benchmark(config)


def test_arena_write(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [arena_row(3), arena_row(4, length=None, baseline_response="unread")])
    south = write_lines(tmp_path / "south.jsonl", [answer(4), answer(3, "South."), answer(99)])
    north = write_lines(
        tmp_path / "north.jsonl", [arena_row(3, baseline_response="N"), arena_row(4, baseline_response="M")]
    )
    found = load_benchmark(benchmark_config("arena_write", path, baselines={"south": str(south), "north": str(north)}))
    assert [(r.request_id, r.required_words) for r in found.requests] == [("3", 500), ("4", None)]
    theirs = {"3": "South.", "4": "An answer."}
    assert found.baselines == {"north": {"3": "N", "4": "M"}, "south": {**theirs, "99": "An answer."}}
    assert list(found.baselines) == ["north", "south"]


def test_a_baseline_is_its_answers_and_not_its_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [arena_row(3), arena_row(4)])

    def digest(*rows: dict[str, Any], **changes: Any) -> str:
        answers = write_lines(tmp_path / "north.jsonl", rows)
        config = benchmark_config("arena_write", path, baselines={"north": str(answers)}, **changes)
        return load_benchmark(config).baseline_digests["north"]

    first = digest(answer(3, "N"), answer(4, "M"))
    assert digest(arena_row(4, baseline_response="M"), answer(3, "N")) == first  # in another order, with the question
    assert digest(answer(3, "N"), answer(4, "M"), num_requests=1) == first  # however many requests are asked
    assert digest(answer(3, "N"), answer(4, "M.")) != first


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("longbench_write", [], r"no line in it; longbench_write needs prompt, type, length"),
        ("longbench_write", [LONGBENCH[0], "{broken"], r"line 2: not JSON at column 2"),
        ("longbench_write", ["[1]"], r"line 1: a JSON object is needed, got list"),
        (
            "longbench_write",
            [{"prompt": "p", "type": "t", "lenght": 5}],
            r"line 1: no column 'length' of longbench_write among lenght, prompt, type; rename 'lenght'\?",
        ),
        (
            "longbench_write",
            [LONGBENCH[0] | {"response": "r"}],
            r"line 1: unknown column 'response': longbench_write has prompt, type, length, language",
        ),
        ("longbench_write", [LONGBENCH[0] | {"length": 0}], r"line 1: length=0: a number of words from 1 on is needed"),
        ("longbench_write", [LONGBENCH[0] | {"length": "500"}], r"length='500'"),
        ("longbench_write", [LONGBENCH[0] | {"prompt": "  "}], r"prompt='  ': text is needed"),
        (
            "longbench_write",
            [r'{"prompt": "Tea \ud83d", "type": "Essay", "length": 100}'],
            r"line 1: prompt holds half of a character at character 5",
        ),
        ("longbench_write", [LONGBENCH[0] | {"language": "fr"}], r"language='fr': en or zh is needed"),
        ("writingbench", [writingbench_row(1)], r"checklist=\[\]: a list of criteria is needed"),
        (
            "writingbench",
            [writingbench_row(1, "a"), writingbench_row(1, "b")],
            r"line 2: id '1' is already that of line 1",
        ),
        ("writingbench", [writingbench_row(1, "a", "a")], r"two criteria with the name 'a'"),
        ("writingbench", [writingbench_row(True, "a")], r"index=True: a number or a name is needed"),
        ("writingbench", [writingbench_row(1, checklist=["a"])], r"criterion 1='a': an object with name"),
        (
            "writingbench",
            [writingbench_row(1, checklist=[{k: v for k, v in criterion_row("a").items() if k != "9-10"}])],
            r"criterion 1: no column '9-10' of a criterion",
        ),
        (
            "writingbench",
            [writingbench_row(1, checklist=[criterion_row("a") | {"weight": 2}])],
            r"unknown column 'weight'",
        ),
    ],
)
def test_bad_lines(tmp_path: Path, name: Any, lines: list[Any], message: str) -> None:
    path = write_lines(tmp_path / "b.jsonl", lines)
    with pytest.raises(UserError, match=message) as caught:
        load_benchmark(benchmark_config(name, path))
    assert str(caught.value).startswith(f"benchmark.path: {path}")
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    requests = write_lines(tmp_path / "a.jsonl", [arena_row(1), arena_row(2)])
    longbench = write_lines(tmp_path / "l.jsonl", LONGBENCH)
    few = write_lines(tmp_path / "few.jsonl", [answer(1)])
    empty = write_lines(tmp_path / "empty.jsonl", [answer(1), answer(2, "")])
    for config, message in (
        (benchmark_config("writingbench", None), r"benchmark.path=null: name the requests of writingbench"),
        (benchmark_config("arena_write", tmp_path / "none.jsonl"), r"none.jsonl': no such file"),
        (benchmark_config("arena_write", requests), r"benchmark.baselines=\{\}: arena_write compares with"),
        (
            benchmark_config("arena_write", requests, baselines={"north": str(tmp_path / "gone.jsonl")}),
            r"benchmark.baselines.north: data source .*gone.jsonl': no such file",
        ),
        (
            benchmark_config("arena_write", requests, baselines={"north": str(few)}),
            r"benchmark.baselines.north=.*no answer to request 2 \(1 of 2 are missing\)",
        ),
        (
            benchmark_config("arena_write", requests, baselines={"north": str(empty)}),
            r"benchmark.baselines.north: .*line 2: baseline_response='': text is needed",
        ),
        (
            benchmark_config("longbench_write", longbench, baselines={"north": str(few)}),
            r"only arena_write has them, not longbench_write",
        ),
        (benchmark_config("longbench_write", longbench, requirements="/r"), r"requirements='/r': only writingbench"),
    ):
        with pytest.raises(UserError, match=message):
            load_benchmark(config)
    other = write_lines(
        tmp_path / "other.jsonl",
        [answer(1) | {"question": "Question 1 "}, arena_row(2) | answer(2) | {"question": "Q"}],
    )
    with pytest.raises(
        UserError,
        match=r"benchmark.baselines.north=.*other.jsonl': answers 'Q' as request 2, where .*a.jsonl' asks 'Question 2'",
    ):
        load_benchmark(benchmark_config("arena_write", requests, baselines={"north": str(other)}))
    limited = benchmark_config("arena_write", requests, baselines={"north": str(few)}, num_requests=1)
    assert load_benchmark(limited).baselines == {"north": {"1": "An answer."}}


def test_texts_must_be_those_of_the_benchmark() -> None:
    benchmark = length_benchmark(100, 200)
    good = [written(str(i), "Text.", f"Write text {i}.") for i in range(2)]
    check_texts(benchmark, good, "t.jsonl", 1)
    for texts, message in (
        (good[:1], r"t.jsonl: 0 texts to request '1', 1 needed \(1 requests are like that\)"),
        ([*good, good[0]], r"two texts to request '0' with sample_index 0"),
        ([*good, written("5", "Text.")], r"text to '5', which is no request of longbench_write"),
        (
            [written("0", "Text.", "Write something else."), good[1]],
            r"request '0' is another one than in longbench_write",
        ),
        ([*good, written("1", "Text.", "Write text 1.", sample_index=1)], r"2 texts to request '1', 1 needed"),
    ):
        with pytest.raises(UserError, match=message):
            check_texts(benchmark, texts, "t.jsonl", 1)
