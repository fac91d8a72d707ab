"""Benchmarks from the files that their authors publish; what is wrong with one is said with file and line."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwz_ray.benchmarks.fields import (
    BadLineError,
    check_columns,
    id_of,
    language_of,
    length_of,
    read_lines,
    short,
    text_of,
)
from lwz_ray.benchmarks.records import BANDS, Benchmark, BenchmarkRequest, Criterion
from lwz_ray.benchmarks.writingbench import REQUIREMENTS
from lwz_ray.config_evaluate import BenchmarkConfig
from lwz_ray.errors import UserError
from lwz_ray.texts import WrittenText

_COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "longbench_write": (("prompt", "type", "length"), ("language",)),
    "writingbench": (("index", "domain1", "domain2", "query", "checklist"), ("lang",)),
    "arena_write": (("idx", "question", "type"), ("length", "baseline_response", "language")),
}
"""Columns that a request must have, and those that it may have."""
_ANSWER_COLUMNS = ("idx", "baseline_response")


def load_benchmark(config: BenchmarkConfig) -> Benchmark:
    """Read a benchmark's requests, and the baselines' answers or the requirement subsets that belong to it.

    Raises UserError with file and line for a line that is malformed, lacks a column, has one that the benchmark does
    not have, or repeats an id; for a baseline that is missing or lacks an answer; and where no path is given.
    """
    if config.path is None:
        raise UserError(
            f"benchmark.path=null: name the requests of {config.name}, a .jsonl with "
            f"{', '.join(_COLUMNS[config.name][0])}; its authors publish the file"
        )
    build = {"longbench_write": _longbench_write, "writingbench": _writingbench, "arena_write": _arena_write}
    try:
        found = read_lines(config.path, config.name, *_COLUMNS[config.name], build[config.name])
    except UserError as error:
        raise UserError(
            f"benchmark.path: {error}; name the requests of {config.name} as its authors publish them"
        ) from error
    if config.name != "writingbench" and config.requirements is not None:
        raise UserError(f"benchmark.requirements={config.requirements!r}: only writingbench has them; set it to null")
    if config.name != "arena_write" and config.baselines:
        raise UserError(f"benchmark.baselines: only arena_write has them, not {config.name}; leave it empty")
    if config.requirements is not None:
        found = _with_requirements(found, Path(config.requirements).expanduser(), config.path)
    requests = tuple(found.values())[: config.num_requests]
    baselines: Mapping[str, Mapping[str, str]] = {}
    if config.name == "arena_write":
        if not config.baselines:
            raise UserError(
                "benchmark.baselines={}: arena_write compares with answers of known models; name at least one: "
                "benchmark.baselines.<model>=<its answers, a .jsonl with idx and baseline_response>"
            )
        baselines = {
            name: _baseline(name, path, requests, config.path) for name, path in sorted(config.baselines.items())
        }
    return Benchmark(config.name, requests, len(found), baselines)


def check_texts(benchmark: Benchmark, texts: Sequence[WrittenText], path: str, samples_per_request: int) -> None:
    """Raise UserError unless the texts of a file are `samples_per_request` to each request of the benchmark.

    Texts to other requests are refused too: a score of the wrong texts would look like any other.
    """
    places = benchmark.positions
    counts = dict.fromkeys(places, 0)
    seen: set[tuple[str, int]] = set()
    for text in texts:
        if text.prompt_id not in places:
            raise UserError(f"{path}: text to {text.prompt_id!r}, which is no request of {benchmark.name}")
        if text.prompt.strip() != benchmark.requests[places[text.prompt_id]].text.strip():
            raise UserError(
                f"{path}: request {text.prompt_id!r} is another one than in {benchmark.name}; write texts anew"
            )
        if (text.prompt_id, text.sample_index) in seen:
            raise UserError(f"{path}: two texts to request {text.prompt_id!r} with sample_index {text.sample_index}")
        seen.add((text.prompt_id, text.sample_index))
        counts[text.prompt_id] += 1
    wrong = [name for name, count in counts.items() if count != samples_per_request]
    if wrong:
        raise UserError(
            f"{path}: {counts[wrong[0]]} texts to request {wrong[0]!r}, {samples_per_request} needed "
            f"({len(wrong)} requests are like that); write the missing ones, or set "
            "evaluate.samples_per_request or benchmark.num_requests to what is there"
        )


def _longbench_write(content: dict[str, Any], index: int) -> tuple[str, BenchmarkRequest]:
    text = text_of(content, "prompt")
    key = str(index)
    return key, BenchmarkRequest(
        request_id=key,
        text=text,
        language=language_of(content, "language", text),
        required_words=length_of(content["length"]),
        labels={"type": text_of(content, "type")},
    )


def _writingbench(content: dict[str, Any], index: int) -> tuple[str, BenchmarkRequest]:
    text = text_of(content, "query")
    key = id_of(content, "index")
    return key, BenchmarkRequest(
        request_id=key,
        text=text,
        language=language_of(content, "lang", text),
        required_words=None,
        labels={"domain1": text_of(content, "domain1"), "domain2": text_of(content, "domain2")},
        criteria=_checklist(content["checklist"]),
    )


def _arena_write(content: dict[str, Any], index: int) -> tuple[str, BenchmarkRequest]:
    text = text_of(content, "question")
    key = id_of(content, "idx")
    length = content.get("length")
    return key, BenchmarkRequest(
        request_id=key,
        text=text,
        language=language_of(content, "language", text),
        required_words=None if length is None else length_of(length),
        labels={"type": text_of(content, "type")},
    )


def _checklist(value: Any) -> tuple[Criterion, ...]:
    if not isinstance(value, list) or not value:
        raise BadLineError(f"checklist={short(value)}: a list of criteria is needed")
    fields = ("name", "criteria_description", *BANDS)
    criteria = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise BadLineError(f"criterion {number}={short(item)}: an object with {', '.join(fields)} is needed")
        try:
            check_columns(item, "a criterion", fields, ())
            name, description, *bands = (text_of(item, one) for one in fields)
        except BadLineError as error:
            raise BadLineError(f"criterion {number}: {error}") from error
        criteria.append(Criterion(name, description, dict(zip(BANDS, bands, strict=True))))
    names = [criterion.name for criterion in criteria]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadLineError(f"two criteria with the name {twice!r}")
    return tuple(criteria)


def _with_requirements(requests: dict[str, BenchmarkRequest], folder: Path, path: str) -> dict[str, BenchmarkRequest]:
    """Return the requests with their requirements, from the published subsets.

    `<folder>/<style>/<style>_subset.jsonl` names the requests that have the requirement, `…_subset_C.jsonl` which of
    their criteria are about it.
    """
    about: dict[str, dict[str, tuple[str, ...]]] = {key: {} for key in requests}
    for requirement in REQUIREMENTS:
        files = [folder / requirement / f"{requirement}_subset{end}.jsonl" for end in ("", "_C")]
        for file in files:
            if not file.is_file():
                raise UserError(f"benchmark.requirements={str(folder)!r}: no file {file}; it is the authors' folder")
        members, criteria = (_subset(str(file)) for file in files)
        for key in members:
            if key not in requests:
                raise UserError(f"{files[0]}: index {key} is no request of {path}; take both from one version")
            names = criteria.get(key, ())
            known = {criterion.name for criterion in requests[key].criteria}
            unknown = [name for name in names if name not in known]
            if unknown:
                raise UserError(
                    f"{files[1]}: criterion {unknown[0]!r} of index {key} is none of that request's in {path}; "
                    "take both from one version"
                )
            about[key][requirement] = names
    return {key: replace(request, requirements=about[key]) for key, request in requests.items()}


def _subset(path: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the criteria by index; the lines hold whole requests, of which only these two are read."""

    def build(content: dict[str, Any], index: int) -> tuple[str, tuple[str, ...]]:
        # Older releases call the list `criteria`.
        listed = content.get("checklist", content.get("criteria", []))
        if not isinstance(listed, list) or not all(
            isinstance(i, dict) and isinstance(i.get("name"), str) for i in listed
        ):
            raise BadLineError(f"checklist={short(listed)}: a list of criteria with names is needed")
        return id_of(content, "index"), tuple(item["name"] for item in listed)

    return read_lines(path, "a requirement subset", ("index",), None, build)


def _baseline(name: str, path: str, requests: Sequence[BenchmarkRequest], asked_in: str) -> dict[str, str]:
    """Return a baseline's answers by the id of their request: all in its file, whichever requests are asked.

    Columns of the request beside it are let through; a `question` must be the one that `asked_in`, the benchmark's
    file, asks.
    """

    def build(content: dict[str, Any], index: int) -> tuple[str, tuple[str, Any]]:
        return id_of(content, "idx"), (text_of(content, "baseline_response"), content.get("question"))

    try:
        answers = read_lines(
            path, f"baseline {name}", _ANSWER_COLUMNS, ("question", "type", "length", "language"), build
        )
    except UserError as error:
        raise UserError(f"benchmark.baselines.{name}: {error}") from error
    missing = [request.request_id for request in requests if request.request_id not in answers]
    if missing:
        raise UserError(
            f"benchmark.baselines.{name}={path!r}: no answer to request {missing[0]} "
            f"({len(missing)} of {len(requests)} are missing); a baseline answers every request"
        )
    for request in requests:
        _, question = answers[request.request_id]
        if question is not None and str(question).strip() != request.text.strip():
            raise UserError(
                f"benchmark.baselines.{name}={path!r}: answers {short(question)} as request {request.request_id}, "
                f"where benchmark.path={asked_in!r} asks {short(request.text)}; take both from one version"
            )
    return {key: text for key, (text, _) in answers.items()}
