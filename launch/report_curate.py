"""The tables of `stage=curate` in its report."""

import importlib
from collections.abc import Mapping
from typing import Any

from launch.files import iter_json_lines
from launch.report_data import RunData
from launch.report_sections import Section

RECIPES = {
    "degradations": "launch.report_curate:degradation_sections",
    "chat_logs": "launch.report_chat_logs:chat_log_sections",
    "distill_plans": "launch.report_plans:plan_sections",
}
"""Of each recipe, module and function that returns the tables of a run."""
SETTINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "degradations": (
        ("Model", "model.path"),
        ("Prompts", "data.path"),
        ("Good texts", "curate.texts_path"),
        ("Texts a prompt", "curate.samples_per_prompt"),
        ("Kinds", "curate.kinds"),
        ("Held-out share of the prompts", "curate.held_out_share"),
        ("Completion tokens, at most", "sampling.max_tokens"),
        ("Seed", "seed"),
    ),
    "chat_logs": (
        ("Chat logs", "curate.chat_logs.paths"),
        ("Rows of each, at most", "curate.chat_logs.max_rows"),
        ("Who is asked", "curate.chat_logs.asked"),
        ("Model of an engine", "model.path"),
        ("Model of an endpoint", "judge.model"),
        ("Words of a request, at most", "curate.chat_logs.max_request_words"),
        ("Similarity of near-duplicates", "curate.chat_logs.minhash_threshold"),
        ("Flagged rows are left out", "curate.chat_logs.drop_flagged"),
        ("Benchmarks", "curate.chat_logs.benchmarks"),
        ("Upper end of a range, at most", "curate.chat_logs.max_upper_words"),
        ("Width of a range, at most", "curate.chat_logs.max_width_words"),
        ("Seed", "seed"),
    ),
    "distill_plans": (
        ("Run that is read", "curate.plans.run"),
        ("Length reward, at least", "curate.plans.min_reward"),
        ("Words of a plan, at least", "curate.plans.min_plan_words"),
        ("Unfinished plans", "curate.plans.on_unfinished"),
        ("Plans, at most", "curate.plans.max_plans"),
    ),
}
"""By recipe."""


def curate_sections(run: RunData) -> list[Section]:
    """Return the tables of the run's recipe."""
    module, _, function = RECIPES[run.config["recipe"]].partition(":")
    return getattr(importlib.import_module(module), function)(run)


def degradation_sections(run: RunData) -> list[Section]:
    """Return what became of texts and pairs; nothing where the run ended before it had any."""
    found = (run.summary or {}).get("curate") or {}
    if "kinds" not in found:
        return []
    return [_texts(found), _kinds(found), _length(found), *_examples(run)]


def _texts(found: Mapping[str, Any]) -> Section:
    rows = [("good", str(found["texts"]["good"]))]
    rows += [(f"left out: {reason.replace('_', ' ')}", str(n)) for reason, n in found["left_out"].items()]
    rows += [(f"sentences in other words by: {way}", str(n)) for way, n in found["paraphrased_by"].items()]
    note = f"{found['texts']['seen']} texts to {found['prompts']['done']} prompts."
    return Section("Texts", note, ("", "number"), rows)


def _kinds(found: Mapping[str, Any]) -> Section:
    rows = [
        (
            kind,
            str(counts["train"]),
            str(counts["heldout"]),
            ", ".join(f"{n} {reason}" for reason, n in counts["missing"].items()) or "–",
        )
        for kind, counts in found["kinds"].items()
    ]
    note = "All texts and pairs of a prompt are on one side. Missing: texts that a kind could not be made of."
    return Section("Pairs by kind", note, ("kind", "training", "held out", "missing"), rows)


def _length(found: Mapping[str, Any]) -> Section:
    rows = [
        (
            kind,
            *(f"{s[name]:.2f}" for name in ("ratio_p10", "ratio_median", "ratio_p90")),
            *(f"{s[name]:.2f}" for name in ("rejected_longer", "rejected_shorter", "matched", "always_shorter_wins")),
        )
        for kind, s in found["length"].items()
    ]
    note = (
        "Words of the rejected text over words of the chosen one, and what length alone would tell: the accuracy of "
        "always preferring the shorter text is 0.5 where it tells nothing."
    )
    columns = ("kind", "10%", "median", "90%", "longer", "shorter", "matched", "shorter wins")
    return Section("Length", note, columns, rows)


def _examples(run: RunData) -> list[Section]:
    seen: set[str] = set()
    rows = []
    for line in iter_json_lines(run.path / "samples.jsonl"):
        if line.get("superseded") or line["split"] != "pairs" or line["kind"] in seen:
            continue
        seen.add(line["kind"])
        rows.append((line["kind"], line["prompt"], line["chosen"], line["rejected"]))
    note = "The first pair of each kind, in the order of the prompts."
    return [Section("Examples", note, ("kind", "request", "chosen", "rejected"), rows)] if rows else []
