"""The tables of `recipe=chat_logs` in its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.files import iter_json_lines
from launch.report_data import RunData
from launch.report_sections import Section

SHOWN = 600
"""Characters of a request in the table of examples."""
_SIEVED = {
    "bad_rows": "no conversation",
    "no_request": "no user turn with words",
    "flagged": "flagged as toxic or redacted",
    "other_language": "another language",
    "too_long": "longer than curate.chat_logs.max_request_words",
    "duplicate": "the same words as an earlier one",
    "overlap": "overlaps with a benchmark",
    "near_duplicate": "nearly the same as an earlier one",
}
_DECIDED = {
    "kept": "kept",
    "not_needed": "needs no long text",
    "unfulfillable": "cannot be fulfilled: range [0, 0]",
    "out_of_limits": "asks for more than curate.chat_logs.max_upper_words",
    "too_wide": "wider than curate.chat_logs.max_width_words",
    "unreadable": "no reply that could be read",
    "refused": "whoever was asked refused it",
}


def chat_log_sections(run: RunData) -> list[Section]:
    """Return what became of rows and requests; nothing where the run ended before it had any."""
    found = (run.summary or {}).get("curate") or {}
    if "rows" not in found:
        return []
    sections = [_rows(found), _sources(found), _decided(found), _ranges(found), *_contamination(found)]
    return [*sections, *_asked(found), *_examples(run)]


def _rows(found: Mapping[str, Any]) -> Section:
    rows = found["rows"]
    cells = [
        (f"left out: {words}", str(rows[name]), _share(rows[name], rows["read"])) for name, words in _SIEVED.items()
    ]
    cells.append(("asked about", str(rows["candidates"]), _share(rows["candidates"], rows["read"])))
    return Section(
        "Rows", f"{rows['read']} rows, each counted once, in the order of the checks.", ("", "rows", "share"), cells
    )


def _sources(found: Mapping[str, Any]) -> Section:
    names = ("read", "candidates", "toxic", "redacted", "without_flags")
    cells = [
        (Path(path).name, str(counts["format"] or "–"), *(str(counts[name]) for name in names))
        for path, counts in found["sources"].items()
    ]
    note = "Rows without flags say neither whether they are toxic nor whether personal data was removed."
    return Section("Chat logs", note, ("file", "format", "rows", "asked about", "toxic", "redacted", "no flags"), cells)


def _decided(found: Mapping[str, Any]) -> Section:
    decided = found["decided"]
    total = sum(decided.values())
    cells = [(words, str(decided[name]), _share(decided[name], total)) for name, words in _DECIDED.items()]
    if missing := found["rows"]["candidates"] - total:
        cells.append(("not decided", str(missing), "–"))
    note = (
        f"{total} of {found['rows']['candidates']} requests; {found['unreadable_replies']} replies could not be read "
        "and were asked for again."
    )
    return Section("Requests", note, ("", "requests", "share"), cells)


def _ranges(found: Mapping[str, Any]) -> Section:
    cells = [(f"{name} words", str(n)) for name, n in found["upper_words"].items()]
    cells += [("stated by the request", str(found["range_from"]["request"]))]
    cells += [("named by the model", str(found["range_from"]["model"]))]
    cells += [("English", str(found["languages"]["en"])), ("Chinese", str(found["languages"]["zh"]))]
    return Section("Word ranges", "Of the kept requests, by their upper end.", ("", "requests"), cells)


def _contamination(found: Mapping[str, Any]) -> list[Section]:
    cells = [
        (name, str(counts["requests"]), str(counts["found"]), str(counts["rows"]))
        for name, counts in found["contamination"].items()
    ]
    note = "Requests of benchmarks that stand in the chat logs. The rows are left out; contamination.json lists them."
    columns = ("benchmark", "its requests", "found in the logs", "rows")
    return [Section("Overlap with benchmarks", note, columns, cells)] if cells else []


def _asked(found: Mapping[str, Any]) -> list[Section]:
    asked = {name: value for name, value in found["asked"].items() if name != "model"}
    if not asked:
        return []
    cells = [(name.replace("_", " "), f"{value:,.6g}") for name, value in asked.items()]
    cells += [(f"without a reply: {reason}", str(n)) for reason, n in found["without_reply"].items()]
    return [Section("Who was asked", f"{found['asked']['model']}, in this attempt.", ("", "number"), cells)]


def _examples(run: RunData) -> list[Section]:
    rows = [
        (line["outcome"], _cut(line["prompt"]), _range(line), line["why"])
        for line in iter_json_lines(run.path / "samples.jsonl")
        if not line.get("superseded") and line["split"] == "curated"
    ]
    note = "The first of each outcome, by order and never by look. What the data flags is not shown."
    return [Section("Examples", note, ("outcome", "request", "words", "why"), rows)] if rows else []


def _range(line: Mapping[str, Any]) -> str:
    found = line.get("length_range")
    return "–" if found is None else f"{found[0]} to {found[1]}"


def _cut(text: str | None) -> str:
    if text is None:
        return "–"
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
