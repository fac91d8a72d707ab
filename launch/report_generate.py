"""The tables of `stage=generate` in its report."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from launch.files import iter_json_lines
from launch.report_data import RunData
from launch.report_sections import Section
from launch.text_store import TEXTS_FILE

EXAMPLES = 6
SETTINGS: tuple[tuple[str, str], ...] = (
    ("Model", "model.path"),
    ("Prompts", "data.path"),
    ("Texts a prompt", "generate.samples_per_prompt"),
    ("Prompt arm", "template.arm"),
    ("Completion tokens, at most", "sampling.max_tokens"),
    ("Temperature", "sampling.temperature"),
    ("Top-p", "sampling.top_p"),
    ("Rollout Ray actors", "actors.replicas"),
    ("Seed", "seed"),
)


def generate_sections(run: RunData) -> list[Section]:
    """Return length and form of the texts; nothing where the run ended before it had any."""
    found = (run.summary or {}).get("generate") or {}
    if not found.get("texts"):
        return []
    parts = {"all": found, **found["by_language"]} if len(found["by_language"]) > 1 else {"all": found}
    return [_length(found, parts), _form(parts)]


def _length(found: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> Section:
    rows = []
    for name, part in parts.items():
        for label, key in (("words", "words"), ("tokens", "tokens"), ("tokens of plans", "think_tokens")):
            spread = part[key]
            if spread is not None:
                cells = tuple(f"{spread[point]:,.0f}" for point in ("mean", "p10", "median", "p90"))
                rows.append((name, label, *cells))
    note = (
        f"{found['texts']} of {found['wanted']} texts, to {found['prompts']} requests. Words are those of the work, a "
        "Chinese character counts one; tokens are those of everything that was written."
    )
    return Section("Length", note, ("language", "", "mean", "10%", "median", "90%"), rows)


def _form(parts: Mapping[str, Mapping[str, Any]]) -> Section:
    rows = []
    for name, part in parts.items():
        ended = part["finish_reasons"]
        rows.append(
            (
                name,
                str(part["texts"]),
                f"{part['well_formed']:.1%}",
                str(part["without_answer"]),
                "–" if part["in_range"] is None else f"{part['in_range']:.1%} of {part['asked_for_length']}",
                f"{part['repetition']:.3f}",
                *(str(ended[reason]) for reason in ("stop", "length", "repetition", "abort")),
            )
        )
    note = (
        "Well formed: exactly the segments of the template. In range: as many words as asked for, of the texts whose "
        "request names a length. Repetition: share of a work that stood in it before, mean. The last columns say how "
        "texts ended: by themselves, at the token limit, stopped because they looped, or at the deadline of a sample."
    )
    columns = (
        "language",
        "texts",
        "well formed",
        "no answer",
        "in range",
        "repetition",
        "stop",
        "length",
        "loop",
        "cut",
    )
    return Section("Form", note, columns, rows)


def shown_texts(run_folder: Path) -> list[dict[str, Any]]:
    """Return the first lines of the folder's `texts.jsonl`, which stages that write texts leave behind."""
    return list(islice(iter_json_lines(run_folder / TEXTS_FILE), EXAMPLES))
