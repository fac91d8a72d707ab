"""A pipeline of a user's own, in a folder of the test's: its preset, its command line, and what it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import main

FOLDER = "# @package _global_\ndefaults: [smoke_cpu, _self_]\nstage: pipeline\ntracking: {wandb: false}\n"
PAIRS = ["stage=curate", "recipe=degradations", "curate.kinds=[shuffle,cut]"]


def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the test's folder the current one, with texts of a user."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "prompt": f"Write about {subject}.",
            "text": f"Everyone in the village knew about the {subject}. Two old sisters brought them across the bay. "
            f"They kept a small notebook full of {subject}. Nobody else was allowed to read it.",
        }
        for subject in ("clams", "kites", "bread", "clocks")
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def words_for(place: Path, model: Path, stages: dict[str, Any], **pipeline: Any) -> list[str]:
    """Return the command line of a pipeline that a preset in the test's own folder describes."""
    (place / "mine" / "run").mkdir(parents=True, exist_ok=True)
    tree = {"stages": {name: {"words": words} for name, words in stages.items()}, **pipeline}
    (place / "mine" / "run" / "line.yaml").write_text(FOLDER + yaml.safe_dump({"pipeline": tree}, sort_keys=False))
    return [
        "--config-dir", "mine", "run=line", f"model.path={model}", "rewards.writing.path=null", "run.dir=runs",
        "run.name=line", "curate.texts_path=texts.jsonl",
    ]  # fmt: skip


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    return capsys.readouterr().err.strip()


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())
