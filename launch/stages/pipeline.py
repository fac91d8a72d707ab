"""`stage=pipeline`: stages of the front door one after the other, each in a run folder of its own below this one.

compose every command ─▶ check what can be checked ─▶ for each stage: skip where it has completed, else
compose ─▶ check ─▶ run (from where it was, if it had begun) ─▶ after the last: compare the arms
"""

import contextlib
import importlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from launch.files import iter_json_lines
from launch.lease import Lease
from launch.pipeline_account import has_completed, stage_rows, summary_of
from launch.pipeline_records import state_of, write_record
from launch.pipeline_stages import check_stage, plan_stage, stage_folder
from launch.report import write_report
from launch.run_folder import RunFolder
from launch.stages.lifecycle import SIGNALS, Lifecycle, leased
from launch.stages.report import compare_runs
from launch.summary import GroupCounts, RunSummary, Status
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, UserError
from lwz_ray.failures import BudgetExceededError

INTERRUPTED = 130


def run(config: Config) -> int:
    """Run the pipeline; return 0 when every stage completed, 130 when it was interrupted.

    Errors of a stage propagate after the summary.
    """
    with leased(config) as lease:
        folder = RunFolder.open(config, lease=lease)
        return Pipeline(config, lease, folder).run()


class Pipeline:
    """One job of a pipeline."""

    def __init__(self, config: Config, lease: Lease, folder: RunFolder) -> None:
        self.config, self.folder, self._lease = config, folder, lease
        self._started = time.monotonic()
        self._arms: dict[str, Any] = {}

    def run(self) -> int:
        """Return the exit status; whatever happens, the summary and the report are written."""
        # A stage that is under way ends in order at SIGTERM.
        self._lease.on_lost = lambda: os.kill(os.getpid(), signal.SIGTERM)
        status: Status = "failed"
        error: str | None = "ended without a reason"
        try:
            status, error = ("completed" if self._stages() else "interrupted"), None
            self._lease.check()
        except KeyboardInterrupt:
            status, error = "interrupted", None
            self._lease.check()
        except (UserError, BudgetExceededError) as problem:
            error = str(problem)
            raise
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
            raise
        finally:
            self._lease.on_lost = lambda: None
            if not self._lease.lost:
                self._end(status, error)
        return 0 if status == "completed" else INTERRUPTED

    def _stages(self) -> bool:
        """Run every stage; say whether all have completed."""
        names = list(self.config.pipeline.stages)
        logged = self._logged(names)
        with interruptible():
            for number, name in enumerate(names, start=1):
                self._say(f"stage {number} of {len(names)}: {name}")
                if not self._stage(name):
                    return False
                if number not in logged:
                    self._log(number, name)
                write_report(self.folder.path)
            self._compare()
        return True

    def _stage(self, name: str) -> bool:
        """Run one stage, unless it has completed; say whether the next one may begin."""
        planned = plan_stage(self.config, name)
        if state_of(self.config, planned) == "completed":
            self._say(f"it has completed: {planned.folder}")
            return True
        check_stage(self.config, planned)
        self._lease.check()
        write_record(self.config, planned)
        stage = importlib.import_module(f"launch.stages.{planned.config.stage}")
        asked = Lifecycle.stops_asked
        try:
            code = stage.run(planned.config)
        except (UserError, BudgetExceededError) as error:
            raise type(error)(f"stage {name} of the pipeline: {error}") from error
        except Exception:
            self._say(f"stage {name} failed; its files are in {planned.folder}")
            raise
        if code == INTERRUPTED:
            return False
        if code != 0 or not has_completed(planned.folder):
            raise InfrastructureError(f"stage {name} ended with status {code} and has not completed: {planned.folder}")
        # A signal that came too late for the stage is there for the next one.
        return Lifecycle.stops_asked == asked

    def _compare(self) -> None:
        """Put the arms side by side, where there are two of them."""
        folders = [stage_folder(self.config, name) for name in self.config.pipeline.arms.values()]
        if len(folders) > 1:
            self._say(f"comparing {', '.join(folder.name for folder in folders)}")
            self._arms = {"side_by_side": compare_runs(self.config, folders)}

    def _logged(self, names: list[str]) -> set[int]:
        """Return the stages by number whose lines of an earlier attempt stand; the others' are marked."""
        if self.folder.attempt == 1:
            return set()
        done = [has_completed(stage_folder(self.config, name)) for name in names]
        first = done.index(False) if False in done else len(done)
        self.folder.mark_superseded(first or None)
        return {line["step"] for line in iter_json_lines(self.folder.metrics) if not line.get("superseded")}

    def _log(self, number: int, name: str) -> None:
        summary = summary_of(stage_folder(self.config, name))
        assert summary is not None
        self.folder.append_metrics(
            {
                "step": number,
                "policy_version": summary["policy_version"],
                "pipeline/stage_s": summary["wall_s"],
                "pipeline/tokens_generated": summary["tokens"]["generated"],
                "pipeline/tokens_trained": summary["tokens"]["trained"],
            }
        )

    def _say(self, text: str) -> None:
        print(f"[{self.config.run.name}] {text}", flush=True)

    def _end(self, status: Status, error: str | None) -> None:
        stages = stage_rows(self.folder.path, self.config.pipeline.stages)
        done = [row for row in stages if row["status"] == "completed"]
        summary = RunSummary(
            stage="pipeline",
            status=status,
            steps=len(done),
            skipped_steps=0,
            policy_version=0,
            wall_s=time.monotonic() - self._started,
            groups=GroupCounts(admitted=0, trained=0, dropped={}, in_flight=0),
            tokens_generated=sum(row["tokens"]["generated"] for row in done),
            tokens_trained=sum(row["tokens"]["trained"] for row in done),
            active_rewards=(),
            error=error,
            measured={"pipeline": {"stages": stages, "arms": dict(self.config.pipeline.arms)}, **self._arms},
        )
        self.folder.write_summary(summary)
        report = write_report(self.folder.path)
        self._say(f"{len(done)} of {len(stages)} stages have completed")
        self._say(f"status: {status}\nreport: {report}")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt: between two stages there is no event loop to take them."""
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
