"""The report's tables of `stage=pretrain` and `stage=sft`: held-out perplexity, and what the data gave."""

from collections.abc import Mapping
from typing import Any

from launch.report_charts import number_text
from launch.report_data import RunData
from launch.report_sections import Section

FEW_TEXTS = 5
"""Below so many held-out texts of a source a bootstrap over them is of little use."""
_SHARED: tuple[tuple[str, str], ...] = (
    ("Model", "model.path"),
    ("Steps, at most", "steps"),
    ("Tokens of a sequence, at most", "model.max_length_tokens"),
    ("Tokens of a microbatch", "learners.microbatch_tokens"),
    ("Learning rate", "optimizer.lr"),
    ("Warm-up steps", "optimizer.warmup_steps"),
    ("Backend", "learners.backend"),
    ("Learner ranks", "learners.ranks"),
    ("Seed", "seed"),
)
SETTINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "pretrain": (
        *_SHARED,
        ("Sequences a step", "corpus.sequences_per_step"),
        ("Token budget", "corpus.max_tokens"),
        ("Schedule", "corpus.lr_schedule"),
        ("Held-out documents", "corpus.eval_path"),
    ),
    "sft": (
        *_SHARED,
        ("Chat pairs", "sft.path"),
        ("Conversations a step", "sft.samples_per_step"),
        ("Token budget", "sft.max_tokens"),
        ("Schedule", "sft.lr_schedule"),
        ("Held-out pairs", "sft.eval_path"),
    ),
}


def supervised_sections(run: RunData) -> list[Section]:
    """Return the tables; none where the run ended before it had any."""
    found = _found(run.summary)
    if found is None:
        return []
    return [*_held_out(found), *_sources(run), *_data(found)]


def supervised_headline(summary: Mapping[str, Any] | None) -> str | None:
    """Return what became of the held-out perplexity as one sentence; None where it was not measured twice."""
    found = _found(summary)
    if found is None or "difference" not in found:
        return None
    before, after, gap = found["before"], found["after"], found["difference"]["loss"]
    if gap["low"] > 0:
        verb = "rose"
    elif gap["high"] < 0:
        verb = "fell"
    else:
        verb = "went, within what chance explains,"
    return (
        f"On held-out texts the perplexity {verb} from {before['perplexity']['mean']:.2f} to "
        f"{after['perplexity']['mean']:.2f}: {gap['mean']:+.4f} nats a token, 95% interval {gap['low']:+.4f} to "
        f"{gap['high']:+.4f}, over {after['num_tokens']:,} tokens."
    )


def supervised_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each reason not to trust the model, the gravest first."""
    found = _found(summary)
    if found is None:
        return []
    warnings = []
    for when in ("before", "after"):
        if reason := found.get(when, {}).get("not_measured"):
            return [f"Held-out perplexity was not measured: {reason}. Nothing here says what was learned."]
    for row in found.get("difference", {}).get("by_source", []):
        if row["low"] > 0:
            warnings.append(
                f"Held-out texts of {row['source']} are predicted worse than before: {row['mean']:+.4f} nats a token, "
                f"95% interval {row['low']:+.4f} to {row['high']:+.4f}."
            )
    few = [row["source"] for row in found.get("after", {}).get("by_source", []) if row["num_texts"] < FEW_TEXTS]
    if few:
        warnings.append(
            f"Fewer than {FEW_TEXTS} held-out texts of {', '.join(few)}: the interval says little of other texts."
        )
    # Documents are counted by source, chat pairs at once and those of another file beside them.
    for name, counts in {summary["stage"]: found["data"], **found["data"]}.items():
        if isinstance(counts, Mapping) and counts.get("bad_rows"):
            warnings.append(f"Rows of {name} left out as malformed: {counts['bad_rows']}.")
    return warnings


def held_out_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return name, tokens, perplexity before and after, difference in nats with its interval; several sources apart."""
    if "difference" not in found:
        return []
    before, after, gap = found["before"], found["after"], found["difference"]
    earlier = {row["source"]: row for row in before["by_source"]}
    later = {row["source"]: row for row in after["by_source"]}
    overall = (before["perplexity"]["mean"], after["perplexity"]["mean"])
    rows = [_row("all held-out texts", after["num_tokens"], *overall, gap["loss"])]
    for row in gap["by_source"] if len(gap["by_source"]) > 1 else []:
        name = row["source"]
        values = (earlier[name]["perplexity"], later[name]["perplexity"])
        rows.append(_row(name, later[name]["num_tokens"], *values, row))
    return rows


def _row(name: str, tokens: int, before: float, after: float, gap: Mapping[str, float]) -> tuple[str, ...]:
    interval = f"{gap['low']:+.4f} to {gap['high']:+.4f}"
    return name, f"{tokens:,}", f"{before:,.2f}", f"{after:,.2f}", f"{gap['mean']:+.4f}", interval


def _held_out(found: Mapping[str, Any]) -> list[Section]:
    rows = held_out_rows(found)
    if not rows:
        return []
    note = (
        f"{found['after']['num_texts']} texts that no step trained on, tokens weighed alike. The difference is in "
        "nats a token; its interval is a paired bootstrap over the texts. Perplexity is exp(loss) and can be "
        "compared between models of one tokenizer only."
    )
    columns = ("texts", "tokens", "perplexity before", "after", "loss, difference", "95%")
    return [Section("Held-out perplexity", note, columns, rows)]


def _sources(run: RunData) -> list[Section]:
    """Return what each source gave and how its loss went, from the steps that survive."""
    names = sorted({key.split("/")[1][: -len("_tokens")] for s in run.steps for key in s if _is_source_tokens(key)})
    total = sum(s.get(f"source/{name}_tokens", 0.0) for s in run.steps for name in names)
    if not total:
        return []
    rows = []
    for name in names:
        losses = [s[f"source/{name}_loss"] for s in run.steps if s.get(f"source/{name}_loss") is not None]
        tokens = sum(s.get(f"source/{name}_tokens", 0.0) for s in run.steps)
        ends = (f"{losses[0]:.4f}", f"{losses[-1]:.4f}") if losses else ("–", "–")
        rows.append((name, f"{tokens:,.0f}", f"{tokens / total:.3%}", *ends))
    note = "Trained tokens of the steps, and the mean loss of a source in its first and its last step, nats a token."
    return [Section("Loss by source", note, ("source", "tokens", "share", "first loss", "last loss"), rows)]


def _is_source_tokens(key: str) -> bool:
    return key.startswith("source/") and key.endswith("_tokens")


def _data(found: Mapping[str, Any]) -> list[Section]:
    """Return the counts of rows or documents, flat, as the data tells them."""
    rows = [(name.replace("_", " "), text) for name, text in _flat("", found["data"])]
    if not rows:
        return []
    return [Section("Data", "What became of every row or document. No text is ever cut away.", ("", ""), rows)]


def _flat(prefix: str, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in found.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out += _flat(f"{name}: ", value)
        else:
            out.append((name, f"{value:,}" if isinstance(value, int) else _text(value)))
    return out


def _text(value: Any) -> str:
    return number_text(value) if isinstance(value, float) else "–" if value is None else str(value)


def _found(summary: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if summary is None else summary.get(summary["stage"])
