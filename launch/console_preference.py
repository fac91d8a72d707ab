"""What a person sees at the end of `stage=train_rm`: accuracy by kind, beside what length alone would reach."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


class PreferenceTable:
    """The last thing such a run prints."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True)

    def show(self, summary: Mapping[str, Any], run_folder: Path, report: Path) -> None:
        """Print the table of `summary.json`'s `preference`, where training got so far, and both paths."""
        if "after" in summary["preference"]:
            self._console.print(self._table(summary["preference"]))
        self._print(f"status: {summary['status']}, {summary['steps']} steps")
        self._print(f"run folder: {run_folder}")
        self._print(f"report: {report}")

    def _table(self, found: Mapping[str, Any]) -> Table:
        after, baseline = found["after"], found["baseline_length"]
        table = Table(
            title=f"Held-out pairwise accuracy, {after['num_pairs']} pairs of {after['num_sources']} sources",
            caption=f"length alone: {baseline['rule']}",
        )
        table.add_column("")
        for column in ("pairs", "accuracy", "95% interval", "length alone"):
            table.add_column(column, justify="right")
        alone = {row["kind"]: row["mean"] for row in baseline["by_kind"]}
        rows = [
            ("all pairs", after["num_pairs"], after["accuracy"], baseline["accuracy"]["mean"]),
            ("mean over kinds", after["num_pairs"], after["macro_accuracy"], baseline["macro_accuracy"]["mean"]),
            *((row["kind"], row["num_pairs"], row, alone[row["kind"]]) for row in found["by_kind"]),
        ]
        for name, num, interval, length in rows:
            low, high = interval["low"], interval["high"]
            table.add_row(name, str(num), f"{interval['mean']:.3f}", f"{low:.3f} to {high:.3f}", f"{length:.3f}")
        return table

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
