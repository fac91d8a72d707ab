"""The tables of `stage=curate recipe=distill_plans` in its report."""

from launch.files import iter_json_lines
from launch.report_data import RunData
from launch.report_sections import Section


def plan_sections(run: RunData) -> list[Section]:
    """Return what became of the samples, and the first plans; nothing where the run ended before it had any."""
    found = (run.summary or {}).get("curate") or {}
    if "samples" not in found:
        return []
    counts = found["samples"]
    rows = [("plans", str(counts["kept"]))]
    rows += [(f"left out: {k.replace('_', ' ')}", str(n)) for k, n in counts.items() if k not in ("read", "kept") and n]
    if (words := found["plan_words"]) is not None:
        rows.append(("words a plan, mean", f"{words['mean']:.0f}"))
        rows.append(("words, least and most", f"{words['least']} to {words['most']}"))
    status = f" (that run is {found['run_status']})" if found["run_status"] not in ("completed", None) else ""
    note = f"{counts['read']} samples of {found['run']}{status}. Samples to held-out prompts are never taken."
    return [Section("Plans", note, ("", "number"), rows), *_examples(run)]


def _examples(run: RunData) -> list[Section]:
    rows = [
        (line["request"], line["plan"], str(line["num_words"]))
        for line in iter_json_lines(run.path / "samples.jsonl")
        if line["split"] == "plans" and not line.get("superseded")
    ]
    note = "The first plans, in the order of the samples."
    return [Section("Examples", note, ("request", "plan", "words"), rows)] if rows else []
