"""Trackers: real wandb offline, plain lines and a real bar on a console, the table at the end."""

import io
import json
import socket
from pathlib import Path

import pytest
from rich.console import Console

from launch.console import ConsoleTable, ConsoleTracker, duration_text, evaluation_text, step_text
from launch.run_folder import RunFolder
from launch.trackers import JsonlTracker, MultiTracker, build_trackers
from launch.wandb_tracker import WandbTracker, wandb_mode

CANARY = "canary0123456789canary0123456789canary01"
STEP = {
    "step": 3,
    "policy_version": 2,
    "rewards/length": 0.512,
    "rewards/format": 0.75,
    "rollout/mean_words": 41.6,
    "rollout/tokens_per_s": 311.4,
    "staleness/mean": 0.5,
    "train/skipped": 0,
}


def everything_in(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def no_wandb_settings(monkeypatch):
    """Keep the user's own wandb settings out of the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)


def test_wandb_offline(make_config, make_sample, monkeypatch, no_wandb_settings):
    monkeypatch.setenv("MY_CANARY_SECRET", CANARY)
    monkeypatch.setattr("sys.argv", ["main.py", f"hub.token={CANARY}"])
    config = make_config(tracking={"wandb": True})
    folder = RunFolder.open(config)
    tracker = build_trackers(config, folder)
    for step in (1, 2):
        tracker.log_step({"step": step, "policy_version": step - 1, "rewards/length": 0.25 * step, "note": "text"})
    tracker.log_samples([make_sample("<answer>private words</answer>")], [0.5], 2, "train")
    tracker.close()
    assert not folder.warnings.exists()
    (offline,) = (folder.path / "wandb").glob("offline-run-*")
    (record,) = offline.glob("run-*.wandb")
    content = record.read_bytes()
    assert b"rewards/length" in content
    assert b"private words" not in content
    names = {p.name for p in offline.rglob("*") if p.is_file()}
    assert names & {"wandb-metadata.json", "requirements.txt", "output.log", "diff.patch"} == set()
    assert CANARY.encode() not in everything_in(folder.path)
    steps = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [s["rewards/length"] for s in steps] == [0.25, 0.5]


def test_wandb_that_cannot_start_is_a_warning(make_config, monkeypatch, no_wandb_settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    config = make_config(tracking={"wandb": True})
    folder = RunFolder.open(config)
    tracker = WandbTracker(config, folder, init_timeout_s=2.0)
    assert not tracker.running
    tracker.log_step(STEP)
    tracker.close()
    (warning,) = [json.loads(line) for line in folder.warnings.read_text().splitlines()]
    assert warning["source"] == "wandb"
    assert warning["message"].startswith("could not start, the run goes on without it (")
    assert CANARY.encode() not in everything_in(folder.path)


def test_wandb_mode():
    assert wandb_mode({}) == "offline"
    assert wandb_mode({"WANDB_API_KEY": ""}) == "offline"
    assert wandb_mode({"WANDB_API_KEY": "k"}) == "online"
    assert wandb_mode({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}) == "offline"
    assert wandb_mode({"WANDB_MODE": "online"}) == "offline"


def test_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    ticks = iter([100.0, 110.0, 130.0])
    tracker = ConsoleTracker(10, start_step=2, console=Console(file=out, width=300), clock=lambda: next(ticks))
    tracker.log_step(STEP)
    tracker.log_step({"step": 3, "eval/length": 0.5, "eval/mean_words": 40.2})
    tracker.log_step({**STEP, "step": 4, "train/skipped": 1, "rewards/length": None})
    tracker.close()
    assert out.getvalue().splitlines() == [
        "step 3/10 · length 0.51 · format 0.75 · 42 words · 311 tokens/s · staleness 0.5 · 1 min 10 s left",
        "step 3/10 · evaluation: length 0.50 · 40 words",
        "step 4/10 · length – · format 0.75 · 42 words · 311 tokens/s · staleness 0.5 · step skipped · 1 min 30 s left",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=True, color_system=None, legacy_windows=False)
    tracker = ConsoleTracker(10, console=console)
    tracker.log_step(STEP)
    tracker.close()
    tracker.close()
    assert "3/10" in out.getvalue()
    assert "length 0.51 · format 0.75 · 42 words" in out.getvalue()
    assert "━" in out.getvalue()


def test_texts():
    assert [duration_text(s) for s in (0.2, 59.4, 59.6, 754, 7380)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "12 min 34 s",
        "2 h 3 min",
    ]
    assert step_text({"train/loss": 1.0}) == ""
    assert evaluation_text(STEP) == ""


def test_several_trackers(make_config, make_sample):
    folder = RunFolder.open(make_config(), environ={})
    out = io.StringIO()
    console = ConsoleTracker(10, console=Console(file=out, width=300))
    tracker = MultiTracker([JsonlTracker(folder), console])
    tracker.log_step(STEP)
    tracker.log_samples([make_sample()], [0.5], 3, "train")
    tracker.close()
    assert json.loads(folder.metrics.read_text())["rewards/length"] == 0.512
    assert json.loads(folder.samples.read_text())["advantage"] == 0.5
    assert out.getvalue().startswith("step 3/10")


def test_closing_reaches_every_tracker():
    closed = []

    class Closing(JsonlTracker):
        def __init__(self, name, error=None):
            self.name, self.error = name, error

        def close(self):
            closed.append(self.name)
            if self.error:
                raise self.error

    with pytest.raises(OSError, match="disk"):
        MultiTracker([Closing("a", OSError("disk")), Closing("b")]).close()
    assert closed == ["a", "b"]


def test_the_table_at_the_end():
    out = io.StringIO()
    summary = {
        "status": "completed",
        "steps": 30,
        "error": None,
        "active_rewards": ["length", "format"],
        "eval": {
            "before": {"length": 0.458, "format": 0.9, "mean_words": 61.04},
            "after": {"length": 0.841, "format": 0.95, "mean_words": 44.0},
            "difference": {"length": {"mean": 0.383, "low": 0.306, "high": 0.463}},
        },
    }
    ConsoleTable(Console(file=out, width=120)).show(summary, Path("/runs/demo"), Path("/runs/demo/report.html"))
    text = " ".join(out.getvalue().split())
    assert "length reward │ 0.458 │ 0.841 │ +0.383 │ [+0.306, +0.463]" in text
    assert "format reward │ 0.900 │ 0.950 │ – │ –" in text
    assert "words │ 61.0 │ 44.0" in text
    assert "writing" not in text
    assert "Rewards that steered learning: length, format" in text
    assert "status: completed, 30 steps run folder: /runs/demo report: /runs/demo/report.html" in text
