"""Several evaluations beside each other in a report: means, differences to the first, ratings in one fit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launch.report_data import RunData
from launch.report_evaluate_words import NOT_A_RESULT, label_of
from launch.report_intervals import Bar, interval_chart
from launch.report_sections import Section

SETTINGS: tuple[tuple[str, str], ...] = (
    ("Evaluations", "report.runs"),
    ("Resamples of the bootstrap", "evaluate.bootstrap_resamples"),
    ("Seed", "seed"),
)
HEADLINES = ("s", "s_l", "writingbench", "arena_write")
"""The score that a headline tells of: the first that was measured."""


def side_by_side_headline(summary: Mapping[str, Any] | None) -> str | None:
    """Return how the last evaluation stands to the first, in one sentence."""
    found = (summary or {}).get("side_by_side")
    if found is None:
        return None
    against, rejected = found["against_first"][-1], _rejected(found)
    for name in HEADLINES:
        gap = against["scores"].get(name)
        if gap is None or name in rejected:
            continue
        change = gap["difference"]
        verb = "is above" if change["low"] > 0 else "is below" if change["high"] < 0 else "is not clearly other than"
        return (
            f"{label_of(name)} of {against['after']} ({gap['after']:.2f}) {verb} that of {against['before']} "
            f"({gap['before']:.2f}): {change['mean']:+.2f}, 95% interval {change['low']:+.2f} to {change['high']:+.2f}"
            f", on {gap['num_requests']} requests."
        )
    return None


def side_by_side_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Return what keeps the evaluations from being compared as a whole."""
    found = summary.get("side_by_side")
    if found is None:
        return []
    warnings = []
    if len(set(found["num_requests"])) > 1:
        counts = ", ".join(f"{name} {num}" for name, num in zip(found["names"], found["num_requests"], strict=True))
        warnings.append(
            f"The evaluations have unequal numbers of requests ({counts}): differences are over those that both have."
        )
    warnings += [f"{', '.join(names)}: {reason}." for reason, names in _by_reason(found["remarks"]).items()]
    for against in found["against_first"]:
        reasons = _by_reason([(label_of(name), reason) for name, reason in against["not_compared"].items()])
        for reason, names in reasons.items():
            warnings.append(f"Not compared, {against['after']} with {against['before']}: {', '.join(names)}: {reason}.")
    return warnings


def _by_reason(pairs: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    """Return the names of (name, reason) under their reason, in the order in which they are met."""
    found: dict[str, list[str]] = {}
    for name, reason in pairs:
        found.setdefault(reason, []).append(name)
    return found


def side_by_side_sections(run: RunData) -> list[Section]:
    """Return means, differences, ratings and runs; none where the comparison did not come about."""
    found = (run.summary or {}).get("side_by_side")
    if found is None:
        return []
    return [_means(found), _differences(found), *_ratings(found), _runs(found)]


def side_by_side_plots(run: RunData) -> list[dict[str, Any]]:
    """Return one plot a number: a row an evaluation."""
    found = (run.summary or {}).get("side_by_side")
    if found is None:
        return []
    plots = []
    for name, means in found["scores"].items():
        bars = [
            Bar(run_name, one["mean"], one["low"], one["high"])
            for run_name, one in zip(found["names"], means, strict=True)
            if one is not None
        ]
        title = _label(found, name)
        if (svg := interval_chart(title, bars)) is not None:
            plots.append({"title": title, "note": "mean and 95% interval over requests", "svg": svg})
    if found["rating"] is not None:
        bars = [
            Bar(name, one["rating"], one["low"], one["high"])
            for name, one in found["rating"]["ratings"].items()
            if one["rating"] is not None
        ]
        title = _ratings_title(found)
        plots.append({"title": title, "note": "one fit over all games", "svg": interval_chart(title, bars)})
    return plots


def _rejected(found: Mapping[str, Any]) -> set[str]:
    """Return the scores that a judge too small for them gave to any of the evaluations."""
    pairs = zip(found["judges"], found["runs"], strict=True)
    return {name for judged, run in pairs if run["not_a_result"] is not None for name in judged}


def _label(found: Mapping[str, Any], name: str) -> str:
    return label_of(name) + (NOT_A_RESULT if name in _rejected(found) else "")


def _ratings_title(found: Mapping[str, Any]) -> str:
    return "Ratings" + (NOT_A_RESULT if _rejected(found) else "")


def _means(found: Mapping[str, Any]) -> Section:
    rows = [(_label(found, name), *(_mean(one) for one in means)) for name, means in found["scores"].items()]
    note = (
        f"{found['benchmark']}: means over requests with the bootstrap's 95% interval. Each over the requests that it "
        "has a number for."
    )
    return Section("Side by side", note, ("", *found["names"]), rows)


def _differences(found: Mapping[str, Any]) -> Section:
    first, *others = found["names"]
    rows = []
    for name in found["scores"]:
        gaps = [against["scores"].get(name) for against in found["against_first"]]
        if any(gap is not None for gap in gaps):
            rows.append((_label(found, name), *(_gap(gap) for gap in gaps)))
    note = (
        f"Minus {first}, on the requests that both have a number for: paired bootstrap over requests, 95% interval. "
        "An asterisk marks an interval without 0."
    )
    return Section(f"Difference to {first}", note, ("", *others), rows)


def _ratings(found: Mapping[str, Any]) -> list[Section]:
    rating = found["rating"]
    if rating is None:
        return []
    rows = []
    for name, one in rating["ratings"].items():
        number, low, high = ("–" if one[key] is None else f"{one[key]:.0f}" for key in ("rating", "low", "high"))
        rows.append((name, number, f"{low} to {high}", one["note"] or ""))
    note = (
        f"One Bradley-Terry fit over the games of all evaluations; {rating['anchor']} is held at "
        f"{rating['anchor_rating']:g}, {rating['scale']}. Intervals are a bootstrap over requests."
    )
    return [Section(_ratings_title(found), note, ("model", "rating", "95%", ""), rows)]


def _runs(found: Mapping[str, Any]) -> Section:
    rows = [
        (name, one["written_by"], str(one["texts"]), one["judge"], one["folder"])
        for name, one in zip(found["names"], found["runs"], strict=True)
    ]
    return Section("Evaluations", "", ("", "texts by", "texts", "judge", "folder"), rows)


def _mean(one: Mapping[str, Any] | None) -> str:
    return "–" if one is None else f"{one['mean']:,.3f} ({one['low']:,.3f} to {one['high']:,.3f})"


def _gap(gap: Mapping[str, Any] | None) -> str:
    if gap is None:
        return "–"
    change = gap["difference"]
    mark = " *" if change["low"] > 0 or change["high"] < 0 else ""
    return f"{change['mean']:+,.3f} ({change['low']:+,.3f} to {change['high']:+,.3f}){mark}"
