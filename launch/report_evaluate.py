"""The part of `stage=evaluate` in its report: scores with their intervals, what texts are like, what the judge did."""

from collections.abc import Iterator, Mapping
from typing import Any

from launch.evaluate_file import EVALUATION_FILE
from launch.evaluate_scores import JUDGED, NOT_MEASURED
from launch.files import read_json
from launch.report_data import RunData
from launch.report_evaluate_words import KINDS, NOT_A_RESULT, UNJUDGED, label_of
from launch.report_intervals import Bar, interval_chart, words_chart
from launch.report_sections import Section

_SETTINGS: tuple[tuple[str, str], ...] = (
    ("Benchmark", "benchmark.name"),
    ("Requests", "benchmark.path"),
    ("Texts a request", "evaluate.samples_per_request"),
    ("Degenerated from a repetition of", "evaluate.degeneration_repetition"),
    ("Resamples of the bootstrap", "evaluate.bootstrap_resamples"),
    ("Seed", "seed"),
)
_WRITER = (
    ("Model", "model.path"),
    ("Prompt arm", "template.arm"),
    ("Completion tokens, at most", "sampling.max_tokens"),
    ("Temperature", "sampling.temperature"),
    ("Top-p", "sampling.top_p"),
)
_JUDGE = (("Judge's temperature", "benchmark.judge_temperature"), ("Judge's top-p", "benchmark.judge_top_p"))


def settings_of(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the settings that this evaluation read, as label and config key: no writer's where texts were there."""
    written = config["evaluate"]["texts_path"] is None
    writer = _WRITER if written else (("Texts that were there", "evaluate.texts_path"),)
    judge: tuple[tuple[str, str], ...] = ()
    if config["judge"]["base_url"] is not None:
        judge = (("Judge", "judge.model"), *_JUDGE)
    elif config["evaluate"]["judge_path"] is not None:
        judge = (("Judge", "evaluate.judge_path"), *_JUDGE)
    return (*writer, *_SETTINGS, *judge)


def facts_of(run: RunData) -> dict[str, Any]:
    """Return everything that the evaluation found; what the summary has where it ended before."""
    path = run.path / EVALUATION_FILE
    return read_json(path)["overall"] if path.is_file() else (run.summary or {}).get("evaluate") or {}


def evaluate_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the scores, and the measures that tell most, a line each: for the console."""
    rows = [*_overall(facts), *_own_rating(facts)]
    for name in ("repetition", "degenerated", "length_error"):
        if (found := _interval_of(facts["measures"].get(name))) is not None:
            rows.append((label_of(name), _with_interval(found, 3)))
    rejected = (facts["judge"] or {}).get("not_a_result")
    return [f"{label}: {value}" for label, value in rows] + ([f"judged scores are {rejected}"] if rejected else [])


def evaluate_headline(summary: Mapping[str, Any] | None) -> str | None:
    """Return the benchmark's score in one sentence, or why there is none; a judge too small gives no headline."""
    facts = (summary or {}).get("evaluate") or {}
    if not facts.get("scores"):
        return None
    asked, scores = facts["requests"], facts["scores"]
    told, parts = bool(facts["judge"].get("not_a_result")), []
    for name in (*(("s_l",) if facts["benchmark"] == "longbench_write" else ()), *JUDGED[facts["benchmark"]]):
        found = _interval_of(scores.get(name))
        if found is not None and not (told and name != "s_l"):
            parts.append(f"{label_of(name)} {_with_interval(found, 2)}")
        elif name != "rating":
            why = "not a result" if told else "not measured"
            parts.append(f"{label_of(name)} {why}")
    if not told:
        parts += [f"{label} {value}" for label, value in _own_rating(facts)]
    whole = "" if asked["complete"] else ", not the whole benchmark"
    return f"{facts['benchmark']}, {asked['asked']} requests{whole}: {'; '.join(parts)}."


def evaluate_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know before believing the scores."""
    facts = summary.get("evaluate") or {}
    if not facts:
        return []
    asked, judge, found = facts["requests"], facts["judge"], []
    if judge.get("not_a_result"):
        found.append(f"Judged scores are {judge['not_a_result']}.")
    if NOT_MEASURED in judge:
        found.append(f"Judged scores are not measured: {judge[NOT_MEASURED]}.")
    if asked["asked"] < asked["whole"]:
        found.append(f"Only {asked['asked']} of the benchmark's {asked['whole']} requests: no score of the benchmark.")
    if asked["left_out_too_long"]:
        found.append(
            f"Requests left out because they are longer than data.max_prompt_tokens: {len(asked['left_out_too_long'])}."
        )
    for reason, count in (judge.get("failed") or {}).items():
        found.append(f"Questions to the judge without a verdict, in no mean: {count} {reason.replace('_', ' ')}.")
    beyond = (facts["scores"] or {}).get("out_of_reach") or {}
    if beyond.get("num_requests"):
        found.append(
            f"Requests for more words than fit into sampling.max_tokens, scored all the same: {beyond['num_requests']}."
        )
    return found


def evaluate_sections(run: RunData) -> list[Section]:
    """Return the tables; none where the run ended before anything was measured."""
    facts = facts_of(run)
    if not facts.get("measures"):
        return []
    found = [_scores(facts), *_groups(facts), *_arena(facts), _measures(facts["measures"])]
    return [*found, *_judge(facts["judge"])]


def evaluate_plots(run: RunData) -> list[dict[str, Any]]:
    """Return title, note and SVG of each plot."""
    path = run.path / EVALUATION_FILE
    if not path.is_file():
        return []
    content = read_json(path)
    facts, plots = content["overall"], []
    scores = facts["scores"]
    required, words = content["required_words"], content["per_request"]["num_words"]
    points = [
        (name, asked, written)
        for name, asked, written in zip(content["requests"], required, words, strict=True)
        if asked is not None and written is not None
    ]
    plots.append(("Words written and asked for", "a dot a request; on the line both are the same",
                  words_chart("words written against words asked for", points)))  # fmt: skip
    for title, groups in _plotted(facts):
        bars = [Bar(name, one["mean"], one["low"], one["high"]) for name, one in groups.items()]
        plots.append((title, "mean and 95% interval", interval_chart(title, bars)))
    if "ratings" in (scores.get("rating") or {}):
        bars = [
            Bar(name, one["rating"], one["low"], one["high"])
            for name, one in scores["rating"]["ratings"].items()
            if one["rating"] is not None
        ]
        title = f"Ratings{_mark(facts, 'rating')}"
        plots.append((title, "Bradley-Terry, 95% interval", interval_chart(title, bars)))
    return [{"title": title, "note": note, "svg": svg} for title, note, svg in plots if svg is not None]


def _plotted(facts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what is drawn row by row: title and the groups of a score."""
    scores = facts["scores"]
    for name, kinds in (("s_l", ("length", "type")), ("s_q", ("length",)), ("arena_write", ("type",))):
        for kind in kinds:
            if groups := (scores.get(name) or {}).get(kind):
                yield f"{label_of(name)}{_mark(facts, name)}, by {KINDS[kind]}", groups
    for kind in ("domain1", "requirement", "requirement_c"):
        if groups := scores.get(kind):
            yield f"WritingBench{_mark(facts, kind)}, by {KINDS[kind]}", groups


def _mark(facts: Mapping[str, Any], name: str) -> str:
    """Return what stands behind the name of a score whose judge is too small for it; empty for any other."""
    return NOT_A_RESULT if facts["judge"].get("not_a_result") and name not in UNJUDGED else ""


def _overall(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the overall scores as label and value, those that were not measured with the reason."""
    for name, found in facts["scores"].items():
        if not isinstance(found, Mapping):
            continue
        if NOT_MEASURED in found:
            yield label_of(name), f"not measured ({found[NOT_MEASURED]})"
        elif (interval := _interval_of(found)) is not None:
            yield label_of(name) + _mark(facts, name), _with_interval(interval, 2)


def _own_rating(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the rating of the model whose texts were judged: the one that is no baseline."""
    scores, mark = facts["scores"], _mark(facts, "rating")
    found = scores.get("rating") or {}
    for name, one in found.get("ratings", {}).items():
        if name not in scores["by_baseline"]:
            yield f"rating of {name}{mark}, {found['anchor']} at {found['anchor_rating']:g}", _points(one)


def _interval_of(found: Any) -> Mapping[str, Any] | None:
    """Return mean, low and high of a score over all requests; None where it has none."""
    if not isinstance(found, Mapping):
        return None
    one = found.get("all", found)
    return one if isinstance(one, Mapping) and "mean" in one else None


def _with_interval(found: Mapping[str, Any], digits: int) -> str:
    return f"{found['mean']:.{digits}f} (95% interval {found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _scores(facts: Mapping[str, Any]) -> Section:
    scores = facts["scores"]
    rows = [*_overall(facts), *_own_rating(facts)]
    if "counters_differ" in scores:
        rows.append(("texts that the two word counters count differently", str(scores["counters_differ"])))
    for name, one in (scores.get("dimension") or {}).items():
        if one is not None:
            rows.append((f"S_Q, {name.replace('_', ' ')}{_mark(facts, 's_q')}", _with_interval(one, 2)))
    note = "Means over requests; a request with several texts counts once. Intervals are a bootstrap over requests."
    if rejected := facts["judge"].get("not_a_result"):
        note += f" Judged scores are {rejected}."
    return Section("Scores", note, ("", "value"), rows)


def _groups(facts: Mapping[str, Any]) -> Iterator[Section]:
    scores = facts["scores"]
    tables = [(label_of(name) + _mark(facts, name), kind, (scores.get(name) or {}).get(kind))
              for name in ("s_l", "s_q", "s", "arena_write") for kind in ("length", "language", "type")]  # fmt: skip
    tables += [(f"WritingBench{_mark(facts, kind)}", kind, scores.get(kind)) for kind in KINDS if kind in scores]
    for label, kind, groups in tables:
        if not groups:
            continue
        rows = [
            (name, str(one["num_requests"]), f"{one['mean']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}")
            for name, one in groups.items()
        ]
        yield Section(f"{label}, by {KINDS[kind]}", "", (KINDS[kind], "requests", "mean", "95%"), rows)


def _arena(facts: Mapping[str, Any]) -> Iterator[Section]:
    scores, mark = facts["scores"], _mark(facts, "arena_write")
    if by_baseline := scores.get("by_baseline"):
        rows = [
            (name, *(str(one["pairs"][k]) for k in ("win", "tie", "loss")), _score(one["score"]))
            for name, one in by_baseline.items()
        ]
        note = (
            "Pairs of a text and a baseline's, each judged in both orders. A tie counts half. Pairs with a verdict "
            f"in one order only are left out: {scores['num_incomplete']}."
        )
        yield Section(f"Against each baseline{mark}", note, ("baseline", "won", "tied", "lost", "score, 95%"), rows)
    if "ratings" in (rating := scores.get("rating") or {}):
        rows = [(name, _points(one), one["note"] or "") for name, one in rating["ratings"].items()]
        note = (
            f"Bradley-Terry maximum likelihood; {rating['anchor']} is held at {rating['anchor_rating']:g}, "
            f"{rating['scale']}. Intervals are a bootstrap over requests."
        )
        yield Section(f"Ratings{mark}", note, ("model", "rating, 95%", ""), rows)
    if order := scores.get("order"):
        rows = [(name.replace("_", " "), _score(one)) for name, one in order.items()]
        note = "How much the judge goes by the place of a text: the score of the first one is 0.5 without bias."
        yield Section("Order bias", note, ("", "mean, 95%"), rows)


def _measures(measures: Mapping[str, Any]) -> Section:
    rows = []
    for name, found in measures.items():
        if not isinstance(found, Mapping) or found["all"] is None:
            continue
        one, digits = found["all"], 0 if name in ("num_words", "think_tokens") else 3
        interval = f"{one['low']:,.{digits}f} to {one['high']:,.{digits}f}"
        rows.append((label_of(name), str(one["num_requests"]), f"{one['mean']:,.{digits}f}", interval))
    note = (
        "Of the answers. Repetition: share of a text that stood in it before. Degenerated: share of texts that repeat "
        "themselves beyond the limit, or that the engine stopped because they looped."
    )
    return Section("What the texts are like", note, ("", "requests", "mean", "95%"), rows)


def _judge(judge: Mapping[str, Any]) -> Iterator[Section]:
    if "questions" not in judge:
        return
    rows = [("judge", judge["name"])]
    rows += [(name, f"{judge[name]:,}") for name in ("questions", "verdicts", "redrawn")]
    rows += [(f"without a verdict: {reason.replace('_', ' ')}", str(n)) for reason, n in judge["failed"].items()]
    rows += [(name.replace("_", " "), f"{value:,.6g}") for name, value in judge["usage"].items()]
    rows += [("example of a failure", example) for example in judge["examples"]]
    note = "A question without a verdict is counted here and is in no score. Replies are kept: no rerun asks twice."
    yield Section("Judge", note, ("", ""), rows)


def _score(one: Mapping[str, Any] | None) -> str:
    return "–" if one is None else f"{one['mean']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def _points(one: Mapping[str, Any]) -> str:
    number, low, high = ("–" if one[key] is None else f"{one[key]:.0f}" for key in ("rating", "low", "high"))
    return f"{number} ({low} to {high})"
