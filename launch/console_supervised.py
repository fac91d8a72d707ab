"""What a person sees at the end of `stage=pretrain` and `stage=sft`: held-out perplexity, by source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.report_supervised import held_out_rows


class SupervisedTable:
    """The last thing such a run prints."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True)

    def show(self, summary: Mapping[str, Any], run_folder: Path, report: Path) -> None:
        """Print the table, where training got so far, and both paths."""
        rows = held_out_rows(summary[summary["stage"]])
        if rows:
            table = Table(title="Held-out texts", caption="loss in nats a token; below 0 they are predicted better")
            table.add_column("")
            for column in ("tokens", "perplexity before", "after", "loss, difference", "95% interval"):
                table.add_column(column, justify="right")
            for row in rows:
                table.add_row(*row)
            self._console.print(table)
        trained = summary["tokens"]["trained"]
        self._print(f"status: {summary['status']}, {summary['steps']} steps, {trained:,} tokens trained")
        self._print(f"run folder: {run_folder}")
        self._print(f"report: {report}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
