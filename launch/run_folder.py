"""The run folder: one place for everything that a run leaves behind.

<run.dir>/<run.name>/
    config.yaml        the resolved config
    manifest.json      versions, revision, seeds, command; one entry for each attempt
    metrics.jsonl      one object a step
    samples.jsonl      one object a sample
    warnings.jsonl     what went wrong without ending the run
    evaluation_*.json  evaluations by prompt, for a resumed run to compare with
    summary.json       what became of the run
    report.html        the same for a reader
    control/           requests of stage=scale and the run's answers
    lease/             which driver writes here
    checkpoints/ export/ wandb/
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.files import iter_json_lines, plain, read_json, replacing, to_json, write_json, write_text_atomic
from launch.lease import Lease, LeaseLostError
from launch.manifest import build_attempt, now
from launch.pair_lines import PAIR_SPLIT
from launch.redaction import redact
from launch.sample_lines import sample_line
from launch.summary import RunSummary
from lwz_ray.config import Config, RunConfig
from lwz_ray.errors import UserError
from lwz_ray.evaluation import EvalSummary
from lwz_ray.records import Sample

log = logging.getLogger(__name__)

FINAL_SPLITS = ("eval_after", PAIR_SPLIT, "curated", "pairs")
"""Samples that every attempt makes anew: of an evaluation after training, and the examples of what was curated."""


def run_path(run: RunConfig) -> Path:
    """Return the absolute path of the run's folder, which need not exist.

    Raises UserError where the name would lead out of `run.dir`, also by a symbolic link.
    """
    parent = Path(run.dir).expanduser().resolve()
    path = parent / run.name
    if path.resolve().parent != parent or path.resolve() == parent:
        raise UserError(f"run.name={run.name!r} leads out of run.dir={run.dir}: choose a plain name")
    return path


class RunFolder:
    """Write a run's files; every line is flushed, every whole file is written aside and renamed."""

    def __init__(
        self, path: Path, attempt: int, environ: Mapping[str, str] | None = None, lease: Lease | None = None
    ) -> None:
        """lease: checked before every write; a folder without one has a single writer by other means."""
        self.path = path
        self.attempt = attempt
        self._lease = lease
        self._environ = os.environ if environ is None else environ

    @classmethod
    def open(
        cls,
        config: Config,
        command: list[str] | None = None,
        environ: Mapping[str, str] | None = None,
        lease: Lease | None = None,
    ) -> "RunFolder":
        """Create the folder, or continue in it as the next attempt, and write config and manifest.

        A resuming caller then calls `mark_superseded` with the step of the checkpoint that it found.
        Raises UserError as `prepare_folder` does.
        """
        path = prepare_folder(config.run)
        earlier = _read_attempts(path / "manifest.json")
        folder = cls(path, len(earlier) + 1, environ, lease)
        folder.check()
        folder._write_config(config)
        if folder.summary.exists():
            # A reader must not take the earlier attempt's end for this one's.
            os.replace(folder.summary, path / f"summary.attempt-{len(earlier)}.json")
        current = build_attempt(config, folder.attempt, command, environ)
        write_json(folder.manifest, {"name": config.run.name, **current, "earlier_attempts": earlier})
        if earlier and config.run.resume == "never":
            folder.mark_superseded(None)
        return folder

    def next_attempt(self, reason: str) -> None:
        """Begin another attempt in the same job, which goes back to a checkpoint; `reason` says why.

        To be followed by `mark_superseded`. Lines carry the new attempt from now on.
        """
        self.check()
        found = read_json(self.manifest)
        earlier = _read_attempts(self.manifest)
        self.attempt += 1
        again = {k: earlier[-1][k] for k in earlier[-1] if k not in ("resumed_from_step", "lost_steps", "reason")}
        again |= {"attempt": self.attempt, "started": now(), "reason": reason}
        write_json(self.manifest, redact({"name": found["name"], **again, "earlier_attempts": earlier}, self._environ))

    def check(self) -> None:
        """Raise LeaseLostError where another driver has taken the folder."""
        if self._lease is not None:
            self._lease.check()

    @property
    def restarts(self) -> int:
        """Attempts that began within a job, because the learners were lost."""
        return sum("reason" in attempt for attempt in _read_attempts(self.manifest))

    @property
    def lost_steps(self) -> int:
        """Steps of earlier attempts that were taken again, over all attempts."""
        return sum(attempt.get("lost_steps", 0) for attempt in _read_attempts(self.manifest))

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def warnings(self) -> Path:
        return self.path / "warnings.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    def mark_superseded(self, resumed_from_step: int | None, reached: int = 0) -> int:
        """Mark the lines of earlier attempts that this attempt replaces; return how many.

        To be called before this attempt's first line. Lines after the step of the checkpoint belong to a history that
        did not survive: they stay, with `"superseded": true`. None: no checkpoint survived, all of them are replaced.
        Samples of FINAL_SPLITS are replaced in any case. A line cut by a kill is removed with a warning. The manifest
        gets `lost_steps`: from the checkpoint to the last step that was logged, or to `reached` where more is known.
        """
        self.check()
        marked, last = 0, reached
        for path in (self.metrics, self.samples):
            if not path.exists():
                continue
            cut: list[str] = []
            with replacing(path) as file:
                for row in iter_json_lines(path, cut):
                    stale = resumed_from_step is None or row["step"] > resumed_from_step
                    stale = stale or row.get("split") in FINAL_SPLITS
                    if stale and row["attempt"] < self.attempt and not row.get("superseded"):
                        row["superseded"] = True
                        marked += 1
                        last = max(last, row["step"])
                    file.write(to_json(row) + "\n")
            if cut:
                self.warn("run folder", f"removed a last line of {path.name} that an earlier attempt left incomplete")
        lost = max(0, last - (resumed_from_step or 0))
        told = {"resumed_from_step": resumed_from_step, "lost_steps": lost}
        write_json(self.manifest, {**read_json(self.manifest), **told})
        return marked

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one step's line; `metrics` holds `step`, `policy_version` and `stage/what` numbers."""
        if "step" not in metrics:
            raise ValueError(f"metrics without 'step': {sorted(metrics)[:5]}")
        self._append(self.metrics, [{**metrics, "attempt": self.attempt, "time": now()}])

    def append_samples(
        self, samples: Sequence[Sample], advantages: Sequence[float] | None, step: int, split: str
    ) -> None:
        """Append one line a sample; evaluation samples have no advantages (None or empty)."""
        if advantages and len(advantages) != len(samples):
            raise ValueError(f"{len(samples)} samples, {len(advantages)} advantages")
        pairs = zip(samples, advantages or [None] * len(samples), strict=True)
        self._append(self.samples, ({**sample_line(s, a, step, split), "attempt": self.attempt} for s, a in pairs))

    def append_lines(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines that a stage built itself to `samples.jsonl`; each holds `step` and `split`."""
        self._append(self.samples, ({**line, "attempt": self.attempt} for line in lines))

    def warn(self, source: str, message: str) -> None:
        """Log and keep something that went wrong without ending the run; the report shows it. Never raises.

        Where the file cannot be written (a full disk, a folder that is away, another driver's lease) the log must do:
        whoever warns is about to mend something.
        """
        line = redact({"time": now(), "attempt": self.attempt, "source": source, "message": message}, self._environ)
        log.warning("%s: %s", source, line["message"])
        with contextlib.suppress(LeaseLostError, OSError):
            self._append(self.warnings, [line])

    def write_evaluation(self, name: str, evaluation: EvalSummary) -> None:
        """Keep an evaluation (`before`, `after`) by prompt."""
        self.check()
        write_json(self.path / f"evaluation_{name}.json", evaluation.as_dict())

    def read_evaluation(self, name: str) -> EvalSummary | None:
        """Return a kept evaluation, or None where there is none."""
        path = self.path / f"evaluation_{name}.json"
        return EvalSummary.from_dict(read_json(path)) if path.exists() else None

    async def replace_export(self, write: Callable[[str], Awaitable[None]]) -> None:
        """Have `write` fill a folder aside, then put it in the place of `export/`."""
        self.check()
        aside = self.path / ".export.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        await write(str(aside))
        self.check()
        shutil.rmtree(self.export, ignore_errors=True)
        aside.rename(self.export)

    def write_summary(self, summary: RunSummary) -> None:
        """Write `summary.json`, free of secrets, for the present attempt."""
        self.check()
        write_json(self.summary, redact({**plain(summary.as_dict()), "attempt": self.attempt}, self._environ))

    def _write_config(self, config: Config) -> None:
        """Write `config.yaml`; a different one of an earlier attempt stays as `config.attempt-N.yaml`."""
        tree = redact(config.model_dump(mode="json"), self._environ)
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
        if self.config.exists():
            earlier = self.config.read_text(encoding="utf-8")
            if earlier != text:
                write_text_atomic(self.path / f"config.attempt-{self.attempt - 1}.yaml", earlier)
        write_text_atomic(self.config, text)

    def _append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append lines and flush each."""
        self.check()
        with path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(to_json(row) + "\n")
                file.flush()


def prepare_folder(run: RunConfig) -> Path:
    """Create a run's folder where it is not there yet; return its path.

    Raises UserError where it already holds steps or checkpoints and `run.resume` is `never`, and where it cannot be
    written.
    """
    path = run_path(run)
    if run.resume == "never" and holds_a_run(path):
        raise UserError(f"{path} already holds a run: choose another run.name, or continue it with run.resume=auto")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.dir={run.dir}: cannot create {path} ({error.strerror})") from error
    return path


def holds_a_run(path: Path) -> bool:
    """Say whether a folder holds steps or checkpoints; one that failed before its first step may be used again."""
    metrics, checkpoints = path / "metrics.jsonl", path / "checkpoints"
    has_steps = metrics.exists() and metrics.stat().st_size > 0
    return has_steps or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _read_attempts(manifest: Path) -> list[dict[str, Any]]:
    """Return the attempts that an existing manifest tells of, oldest first."""
    if not manifest.exists():
        return []
    found = read_json(manifest)
    earlier = found.pop("earlier_attempts")
    found.pop("name")
    return [*earlier, found]
