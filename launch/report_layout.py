"""What a report shows, stage by stage: curves, settings, and the tables of a stage's own measurements."""

import importlib
from collections.abc import Mapping
from typing import Any

from launch.report_data import RunData
from launch.report_sections import Section

CHARTS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Reward by component", "mean over the step's samples",
     (("rewards/length", "length"), ("rewards/format", "format"), ("rewards/writing", "writing"))),
    ("Total reward", "weighted mean of the active rewards",
     (("rewards/total", "training"), ("eval/total", "held out"))),
    ("Words", "mean over the step's answers", (("rollout/mean_words", "words"),)),
    ("Shares of samples", "0 to 1", (("rollout/in_range", "in range"), ("rollout/well_formed", "well formed"),
     ("rollout/truncated", "truncated"))),
    ("Repetition and variety", "0 to 1",
     (("rollout/repetition", "repetition"), ("rollout/distinct_2", "distinct-2"))),
    ("Clip fraction", "share of trained tokens", (("train/clip_fraction", "clipped"),)),
    ("Gradient norm", "before clipping", (("train/grad_norm", "norm"),)),
    ("Staleness", "policy versions behind", (("staleness/mean", "mean"), ("staleness/max", "max"))),
    ("Engine against learner", "mean difference of logprobs, nats a token", (("train/mismatch", "mismatch"),)),
    ("Generation", "tokens a second", (("rollout/tokens_per_s", "tokens/s"),)),
    ("Seconds a step", "", (("time/step_s", "step"), ("time/train_s", "training"), ("time/wait_s", "waiting"))),
    ("Other scorers", "mean over the step's samples", (("rewards/judge", "judge"), ("rewards/function", "function"))),
    ("Follows length", "correlation inside groups", (("watch/writing_length_correlation", "writing"),
     ("watch/format_length_correlation", "format"), ("watch/judge_length_correlation", "judge"))),
    ("What drives the advantage", "share", (("watch/length_driver", "length"), ("watch/format_driver", "format"),
     ("watch/writing_driver", "writing"))),
    ("Compression of answers", "bytes over compressed bytes", (("watch/compression_ratio", "ratio"),)),
    ("Openings and copies", "0 to 1", (("watch/opening_entropy", "opening entropy"),
     ("watch/copied_from_prompt", "copied from the request"))),
    ("Writing against the second scorer", "standard deviations", (("eval/drift", "drift"),)),
    ("Pairs of a step told apart", "share", (("train/pair_accuracy", "accuracy"),)),
    ("Loss", "", (("train/loss", "loss"),)),
    ("Held-out loss", "nats a token", (("validation/loss", "loss"),)),
    ("Learning rate", "", (("train/lr", "rate"),)),
)  # fmt: skip

SETTINGS: tuple[tuple[str, str], ...] = (
    ("Model", "model.path"),
    ("Steps", "steps"),
    ("Prompts a step", "groups_per_step"),
    ("Samples a prompt", "group_size"),
    ("Most staleness", "max_staleness"),
    ("Prompt arm", "template.arm"),
    ("Completion tokens, at most", "sampling.max_tokens"),
    ("Temperature", "sampling.temperature"),
    ("Top-p", "sampling.top_p"),
    ("Learning rate", "optimizer.lr"),
    ("Warm-up steps", "optimizer.warmup_steps"),
    ("Algorithm", "algorithm.name"),
    ("Loss", "algorithm.loss"),
    ("Clip, low", "algorithm.clip_low"),
    ("Clip, high", "algorithm.clip_high"),
    ("Advantage", "algorithm.advantage"),
    ("Off-policy correction", "algorithm.correction"),
    ("Reward weights", "rewards.weights"),
    ("Rollout Ray actors", "actors.replicas"),
    ("Learner ranks", "learners.ranks"),
    ("Seed", "seed"),
)


STAGES: dict[str, tuple[str, str]] = {
    "train_rm": ("launch.report_preference", "preference_sections"),
    "pretrain": ("launch.report_supervised", "supervised_sections"),
    "sft": ("launch.report_supervised", "supervised_sections"),
    "curate": ("launch.report_curate", "curate_sections"),
    "generate": ("launch.report_generate", "generate_sections"),
    "evaluate": ("launch.report_evaluate", "evaluate_sections"),
    "report": ("launch.report_side_by_side", "side_by_side_sections"),
    "pipeline": ("launch.report_pipeline", "pipeline_sections"),
}
"""Where the tables of a stage are made: module and function of the run. `SETTINGS` of that module are those shown; a
module that serves several stages, or recipes, has a map of them, one whose settings vary by config `settings_of`."""


def settings(run: RunData) -> tuple[tuple[str, str], ...]:
    """Return the settings that the run's stage, or its recipe, reads, as label and config key."""
    stage = run.config["stage"]
    if (place := STAGES.get(stage)) is None:
        return SETTINGS
    module = importlib.import_module(place[0])
    if hasattr(module, "settings_of"):
        return module.settings_of(run.config)
    found = getattr(module, "SETTINGS", SETTINGS)
    return found[run.config["recipe"] if stage == "curate" else stage] if isinstance(found, Mapping) else found


PLOTS: dict[str, tuple[str, str]] = {
    "evaluate": ("launch.report_evaluate", "evaluate_plots"),
    "report": ("launch.report_side_by_side", "side_by_side_plots"),
    "pipeline": ("launch.report_side_by_side", "side_by_side_plots"),
}
"""Where the plots of a stage are made that are no curves over steps: module and function of the run."""


def plots(run: RunData) -> list[dict[str, Any]]:
    """Return title, note and SVG of each plot that the run's stage adds."""
    if (place := PLOTS.get(run.config["stage"])) is None:
        return []
    return getattr(importlib.import_module(place[0]), place[1])(run)


def sections(run: RunData) -> list[Section]:
    """Return the tables that the run's stage adds."""
    if (place := STAGES.get(run.config["stage"])) is None:
        return _watch_sections(run)
    return getattr(importlib.import_module(place[0]), place[1])(run)


def _watch_sections(run: RunData) -> list[Section]:
    """Return the limits of the watch that steps went past; no table where none did."""
    counts = (run.summary or {}).get("watch") or {}
    rows = [
        (key, str(int(c["first_step"])), str(int(c["steps"])), f"{c['worst']:.3f}", f"{c['limit']:g}")
        for key, c in sorted(counts.items())
    ]
    if not rows:
        return []
    note = "Steps in which a metric went past a limit of the config's watch. A reason to read samples, not a proof."
    return [Section("Watch for reward games", note, ("metric", "first step", "steps", "furthest", "limit"), rows)]
