"""What a person watches: a progress bar on a terminal, plain lines elsewhere, a table at the end."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from launch.report_data import SamplePair
from lwz_ray.records import Sample

RECENT_STEPS = 10
COMPONENTS = ("length", "writing", "format")


class ConsoleTracker:
    """Show step, rewards by component, mean words, tokens/s, staleness and time left.

    total_steps, start_step: where the run ends and where this attempt continues; clock: seconds, monotonic.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._console = console or Console(soft_wrap=True)
        self._clock = clock
        self._ends: deque[tuple[int, float]] = deque([(start_step, clock())], maxlen=RECENT_STEPS + 1)
        self._progress: Progress | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._progress.add_task("waiting for the first step", total=total_steps, completed=start_step)
            self._progress.start()

    def log_step(self, metrics: Mapping[str, Any]) -> None:
        """Show one line; a line that holds only an evaluation leaves the step where it is."""
        step = int(metrics["step"])
        evaluation = evaluation_text(metrics)
        trained = any(not k.startswith("eval/") and "/" in k for k in metrics)
        if evaluation:
            self._console.print(f"step {step}/{self._total} · {evaluation}", highlight=False, markup=False)
        if not trained:
            return
        self._ends.append((step, self._clock()))
        text = f"{step_text(metrics)} · {self._time_left(step)}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=text)
        else:
            self._console.print(f"step {step}/{self._total} · {text}", highlight=False, markup=False)

    def log_samples(self, samples: Sequence[Sample], advantages: Sequence[float], step: int, split: str) -> None:
        """Show nothing: samples are for the report."""

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _time_left(self, step: int) -> str:
        """Return the steps left times the recent steps' mean duration."""
        (first_step, first), (last_step, last) = self._ends[0], self._ends[-1]
        if last_step <= first_step:
            return "time left unknown"
        left_s = (last - first) / (last_step - first_step) * (self._total - step)
        return f"{duration_text(left_s)} left"


def duration_text(seconds: float) -> str:
    """Return a duration for people.

    >>> duration_text(42.2), duration_text(754), duration_text(7380)
    ('42 s', '12 min 34 s', '2 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def step_text(metrics: Mapping[str, Any]) -> str:
    """Return the numbers of a step worth watching; one that was not measured is left out."""
    parts = [f"{k} {_number(metrics[f'rewards/{k}'])}" for k in COMPONENTS if f"rewards/{k}" in metrics]
    if "train/pair_accuracy" in metrics or "train/total_tokens" in metrics:
        # Of pairs and of texts the loss says something; a policy's only goes round 0.
        parts.append(f"loss {_number(metrics.get('train/loss'), digits=3)}")
    for key, form in (
        ("rollout/mean_words", "{} words"),
        ("rollout/tokens_per_s", "{} tokens/s"),
        ("staleness/mean", "staleness {}"),
    ):
        if key in metrics:
            parts.append(form.format(_number(metrics[key], digits=1 if key.startswith("staleness") else 0)))
    for key, form, digits in (
        ("train/pair_accuracy", "accuracy {}", 3),
        ("train/tokens_per_s", "{} tokens/s", 0),
        ("preference/accuracy", "held out {}", 3),
        ("validation/perplexity", "held-out perplexity {}", 2),
    ):
        if key in metrics:
            parts.append(form.format(_number(metrics[key], digits=digits)))
    if metrics.get("train/skipped"):
        parts.append("step skipped")
    return " · ".join(parts)


def evaluation_text(metrics: Mapping[str, Any]) -> str:
    """Return the rewards of an evaluation, or an empty string where the metrics hold none."""
    names = [*COMPONENTS, "total"]
    parts = [f"{k} {_number(metrics[f'eval/{k}'])}" for k in names if f"eval/{k}" in metrics]
    if "eval/mean_words" in metrics:
        parts.append(f"{_number(metrics['eval/mean_words'], digits=0)} words")
    return "evaluation: " + " · ".join(parts) if parts else ""


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


class ConsoleSamples:
    """Samples before and after training, taken by the order of the held-out prompts, never by look."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True)

    def show(self, pairs: Sequence[SamplePair]) -> None:
        """Print request and texts of pairs that have both; nothing where there is none."""
        for pair in pairs:
            if pair.before is None or pair.after is None:
                continue
            self._print(f"request: {pair.prompt['prompt']}", style="bold")
            self._print(f"  before: {' '.join(pair.before['completion'].split())}")
            self._print(f"  after:  {' '.join(pair.after['completion'].split())}")

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, highlight=False, markup=False)


class ConsoleTable:
    """The last thing a run prints: before and after by name, and where to read on."""

    ROWS = (
        ("length", "length reward", 3),
        ("writing", "writing reward", 3),
        ("format", "format reward", 3),
        ("total", "mean total", 3),
        ("mean_words", "words", 1),
        ("in_range", "share in range", 3),
        ("well_formed", "share well formed", 3),
        ("repetition", "repetition", 3),
        ("distinct_2", "distinct-2", 3),
        ("truncated", "share truncated", 3),
    )

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True)

    def show(self, summary: Mapping[str, Any], run_folder: Path, report: Path) -> None:
        """Print the table of `summary.json`'s `eval`, the active rewards, and both paths.

        An error is left to the command line, which says it once and last.
        """
        evaluation = summary["eval"]
        if evaluation is not None:
            self._console.print(self._table(summary, evaluation))
        self._console.print(f"status: {summary['status']}, {summary['steps']} steps", highlight=False, markup=False)
        self._console.print(f"run folder: {run_folder}", highlight=False, markup=False, soft_wrap=True)
        self._console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)

    def _table(self, summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Table:
        active = ", ".join(summary["active_rewards"])
        table = Table(title="Held-out evaluation", caption=f"Rewards that steered learning: {active}")
        table.add_column("")
        for column in ("before", "after", "difference", "95% interval"):
            table.add_column(column, justify="right")
        for name, label, digits in self.ROWS:
            before, after = evaluation["before"].get(name), evaluation["after"].get(name)
            if before is None and after is None:
                continue
            gap = evaluation["difference"].get(name)
            table.add_row(
                label,
                _number(before, digits),
                _number(after, digits),
                "–" if gap is None else f"{gap['mean']:+.{digits}f}",
                "–" if gap is None else f"[{gap['low']:+.{digits}f}, {gap['high']:+.{digits}f}]",
                style="bold" if name in summary["active_rewards"] else None,
            )
        return table
