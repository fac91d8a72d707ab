"""Turn a run's data into the report's HTML through the template beside this file."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from launch.console import ConsoleTable, duration_text
from launch.report_charts import Series, line_chart, number_text
from launch.report_data import RunData
from launch.report_evaluate import evaluate_headline
from launch.report_generate import shown_texts
from launch.report_layout import CHARTS, plots, sections, settings
from launch.report_pipeline import pipeline_headline
from launch.report_preference import preference_headline
from launch.report_side_by_side import side_by_side_headline
from launch.report_supervised import supervised_headline
from launch.report_warnings import run_warnings, unbalanced
from launch.stage_table import LEARNING, WRITING

AGAIN = {
    "rl": "The seed fixes the order of prompts and the seeds of sampling; an asynchronous run still varies with the "
    "timing of its machines.",
    "pretrain": "The seed fixes the order of documents.",
    "sft": "The seed fixes the order of conversations.",
    "train_rm": "The seed fixes the order of pairs, and the head that the model gets.",
    "report": "The seed fixes the draws of the bootstrap.",
    "pipeline": "Stages that have completed are not run again with run.resume=auto.",
}
AGAIN_BY_DEFAULT = "The seed fixes every choice that is drawn; what a judge or an endpoint replies may vary."
"""What is the same when a run's command is given again, by stage."""


def render(run: RunData) -> str:
    """Return the page; every text of the run is escaped by the template."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summary = run.summary
    return environment.get_template("report.html.j2").render(
        name=run.manifest["name"],
        status=summary["status"] if summary else "no summary",
        headline=_headline(summary),
        facts=_facts(run),
        settings=[(label, _setting(run.config, key)) for label, key in settings(run)],
        config_text=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        charts=_charts(run),
        evaluation=evaluation_rows(summary),
        eval_counts=_eval_counts(summary),
        sections=sections(run),
        plots=[{**plot, "svg": Markup(plot["svg"])} for plot in plots(run)],
        pairs=run.pairs,
        texts=shown_texts(run.path),
        # Where pairs or texts are trained, groups only count them; other stages have none.
        groups=_groups(summary) if run.config["stage"] == "rl" else None,
        warnings=run_warnings(run),
        manifest=run.manifest,
        command=shlex.join(run.manifest["command"]),
        same_again=AGAIN.get(run.config["stage"], AGAIN_BY_DEFAULT),
        words=_words,
        reward=_reward,
    )


def _headline(summary: Mapping[str, Any] | None) -> str | None:
    """Return the one sentence that the stage's own headline has for the run."""
    ways = (
        headline, preference_headline, supervised_headline, evaluate_headline, pipeline_headline, side_by_side_headline,
    )  # fmt: skip
    return next((text for way in ways if (text := way(summary))), None)


def headline(summary: Mapping[str, Any] | None) -> str | None:
    """Return what happened to the length reward, or to the total where it is not there, as one sentence."""
    if summary is None or summary.get("eval") is None:
        return None
    evaluation = summary["eval"]
    for name, label in (("length", "length reward"), ("total", "mean total reward")):
        gap = evaluation["difference"].get(name)
        if gap is None:
            continue
        if gap["low"] > 0:
            verb = "rose"
        elif gap["high"] < 0:
            verb = "fell"
        else:
            verb = "went, within what chance explains,"
        return (
            f"On held-out prompts the {label} {verb} from {evaluation['before'][name]:.3f} to "
            f"{evaluation['after'][name]:.3f}: {gap['mean']:+.3f}, 95% interval "
            f"{gap['low']:+.3f} to {gap['high']:+.3f}."
        )
    return None


def evaluation_rows(summary: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the before/after table, with words for what each interval says."""
    if summary is None or summary.get("eval") is None:
        return []
    evaluation = summary["eval"]
    rows = []
    for name, label, digits in ConsoleTable.ROWS:
        before, after = evaluation["before"].get(name), evaluation["after"].get(name)
        if before is None and after is None:
            continue
        gap = evaluation["difference"].get(name)
        rows.append(
            {
                "label": label,
                "active": name in summary["active_rewards"],
                "before": _fixed(before, digits),
                "after": _fixed(after, digits),
                "difference": _fixed(gap and gap["mean"], digits, "+"),
                "interval": f"{gap['low']:+.{digits}f} to {gap['high']:+.{digits}f}" if gap else "–",
                "reading": _reading(gap),
            }
        )
    return rows


def _reading(gap: Mapping[str, float] | None) -> str:
    if gap is None:
        return "not paired"
    if gap["low"] > 0:
        return "higher"
    return "lower" if gap["high"] < 0 else "no clear change"


def _facts(run: RunData) -> list[tuple[str, str]]:
    manifest, summary = run.manifest, run.summary
    facts = [
        ("Stage", run.config["stage"]),
        ("Started", manifest["started"].replace("T", " ").replace("+00:00", " UTC")),
    ]
    if summary is not None:
        stage, tokens = run.config["stage"], summary["tokens"]
        facts += [("Took", duration_text(summary["wall_s"])), *_progress(run, summary["steps"])]
        if stage in WRITING:
            facts.append(("Tokens generated", f"{tokens['generated']:,}"))
        if stage in LEARNING:
            facts.append(("Tokens trained", f"{tokens['trained']:,}"))
            facts.append(("Policy version", str(summary["policy_version"])))
        if summary["active_rewards"]:
            facts.append(("Rewards that steered learning", ", ".join(summary["active_rewards"])))
    if manifest["attempt"] > 1:
        facts.append(("Attempt", str(manifest["attempt"])))
    return facts


def _progress(run: RunData, steps: int) -> list[tuple[str, str]]:
    """Return how far the run came; stages that neither train nor chain others say so in their tables."""
    if run.config["stage"] == "pipeline":
        return [("Stages", f"{steps} of {len(run.config['pipeline']['stages'])}")]
    return [("Steps", f"{steps} of {run.config['steps']}")] if run.config["stage"] in LEARNING else []


def _setting(config: Mapping[str, Any], key: str) -> str:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items()) or "–"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_cell(one) for one in value) or "–"
    return _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return number_text(value) if isinstance(value, float) else str(value)


def _charts(run: RunData) -> list[dict[str, Any]]:
    charts = []
    for title, unit, lines in CHARTS:
        series = [
            Series(label, tuple((step["step"], step[key]) for step in run.steps if key in step))
            for key, label in lines
            if any(step.get(key) is not None for step in run.steps)
        ]
        svg = line_chart(title, series)
        if svg is not None:
            charts.append({"title": title, "unit": unit, "svg": Markup(svg), "names": [s.name for s in series]})
    return charts


def _eval_counts(summary: Mapping[str, Any] | None) -> str:
    if summary is None or summary.get("eval") is None:
        return ""
    prompts, samples = summary["eval"]["num_prompts"], summary["eval"]["num_samples"]
    return f"{prompts['after']} prompts, {samples['after']} samples after training ({samples['before']} before)"


def _groups(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if summary is None else {**summary["groups"], "unbalanced": unbalanced(summary["groups"])}


def _fixed(value: float | None, digits: int, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def _words(line: Mapping[str, Any]) -> str:
    """Return a sample's length against what was asked."""
    unit = "characters" if line["language"] == "zh" else "words"
    asked = line["length_range"]
    return f"{line['num_words']} {unit}" + (f", asked for {asked[0]} to {asked[1]}" if asked else "")


def _reward(value: Any) -> str:
    """Return a reward or the reason why there is none."""
    return f"failed: {value['failure']}" if isinstance(value, Mapping) else number_text(value)
