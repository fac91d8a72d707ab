"""Pipelines of stages that need no engine: what is skipped, what a signal ends, and what is left behind."""

import json
import signal
from pathlib import Path

import pytest

from launch.cli import main
from launch.compose import compose
from launch.pipeline_records import record_of, state_of, write_record
from launch.pipeline_stages import plan_stage, stage_folder
from launch.report import write_report
from launch.stages import curate_degradations
from launch.stages.pipeline import interruptible
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from tests.unit.launch.pipeline_parts import PAIRS, error_of, own_place, summary, words_for


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_place(tmp_path, monkeypatch)


def test_completed_stages_stand_and_the_failed_one_goes_on(
    place: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    # The second stage reads a file of the first that it cannot use: texts need a column `prompt`.
    broken = [*PAIRS, "curate.texts_path={pairs}/summary.json"]
    words = words_for(place, tiny_model_dir, {"pairs": PAIRS, "more": broken})
    home = place / "runs" / "line"
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: stage more of the pipeline: ")
    found = summary(home)
    assert (found["stage"], found["status"], found["steps"]) == ("pipeline", "failed", 1)
    assert found["error"] == error.removeprefix("error: ")
    assert [row["status"] for row in found["pipeline"]["stages"]] == ["completed", "not_begun"]
    made = (home / "pairs" / "pairs.jsonl").read_bytes()

    again = [*words_for(place, tiny_model_dir, {"pairs": PAIRS, "more": PAIRS})]
    assert error_of(again, capsys).startswith(f"error: {home} already holds a run")
    assert main([*again, "run.resume=auto"]) == 0
    printed = capsys.readouterr().out
    assert f"[line] it has completed: {home / 'pairs'}" in printed
    assert (home / "pairs" / "pairs.jsonl").read_bytes() == made
    found = summary(home)
    assert (found["status"], found["steps"], found["attempt"]) == ("completed", 2, 2)
    assert summary(home / "pairs")["attempt"] == 1
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["attempt"], "superseded" in line) for line in lines] == [(1, 1, False), (2, 2, False)]
    page = (home / "report.html").read_text()
    assert "2 of 2 stages have completed." in page
    assert "curate.kinds=[shuffle,cut]" in page

    # Settings that a stage does not read may change; all that it would not make again is told at once.
    assert main([*again, "run.resume=auto", "benchmark.num_requests=3"]) == 0
    capsys.readouterr()
    assert error_of([*again, "run.resume=auto", "seed=9"], capsys) == (
        f"error: {home} holds results that this command would not make: pairs has completed with other settings "
        "(seed); more has completed with other settings (seed); choose another run.name, give the settings that they "
        "had, or move their folders away to have them made anew"
    )


def test_a_stage_made_from_another_result_is_refused(place: Path, tiny_model_dir: Path):
    stages = {"a": PAIRS, "b": [*PAIRS, "curate.texts_path={a}/texts.jsonl"]}
    config: Config = compose(words_for(place, tiny_model_dir, stages))
    for name, wall_s in (("a", 1.0), ("b", 2.0)):
        folder = stage_folder(config, name)
        folder.mkdir(parents=True)
        write_record(config, plan_stage(config, name))
        (folder / "summary.json").write_text(json.dumps({"status": "completed", "wall_s": wall_s}))
    assert [state_of(config, plan_stage(config, name)) for name in stages] == ["completed", "completed"]
    (stage_folder(config, "a") / "summary.json").write_text(json.dumps({"status": "completed", "wall_s": 3.0}))
    assert state_of(config, plan_stage(config, "a")) == "completed"
    with pytest.raises(UserError, match=r"would not make: b has read an earlier result of a; choose another run.name"):
        state_of(config, plan_stage(config, "b"))


def test_a_stage_that_has_begun_from_another_result_is_refused(place: Path, tiny_model_dir: Path):
    stages = {"a": PAIRS, "b": [*PAIRS, "curate.texts_path={a}/texts.jsonl"]}
    config = compose(words_for(place, tiny_model_dir, stages))
    for name in stages:
        stage_folder(config, name).mkdir(parents=True)
    told = stage_folder(config, "a") / "summary.json"
    told.write_text(json.dumps({"status": "completed", "wall_s": 1.0}))
    write_record(config, plan_stage(config, "b"))
    told.unlink()
    # It has failed before it made anything: it may begin from what there will be.
    assert state_of(config, plan_stage(config, "b")) == "new"
    (stage_folder(config, "b") / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"would not make: b has read an earlier result of a; choose another run.name"):
        state_of(config, plan_stage(config, "b"))


def test_only_what_a_stage_reads_counts_as_its_settings(place: Path, tiny_model_dir: Path):
    stages = {
        "pairs": PAIRS,
        "learn": ["stage=rl", "judge.base_url=null"],
        "more": ["stage=sft"],
        "score": ["stage=evaluate"],
    }
    words = words_for(place, tiny_model_dir, stages)
    kept = compose(words)

    def changed(*more: str) -> dict[str, list[str]]:
        now = compose([*words, *more])
        found = {}
        for name in stages:
            before, after = (record_of(config, plan_stage(config, name)).sections for config in (kept, now))
            found[name] = [key for key in after if after[key] != before[key]]
        return {name: keys for name, keys in found.items() if keys}

    assert changed("failures.heartbeat_every_s=7", "cluster.num_cpus=2", "run.keep_checkpoints=1") == {}
    assert changed("judge.base_url=http://localhost:1/v1", "judge.model=m") == {"pairs": ["judge"], "score": ["judge"]}
    assert changed("optimizer.lr=0.1", "steps=7") == {"learn": ["steps", "optimizer"], "more": ["steps", "optimizer"]}
    assert changed("actors.kv_cache_mib=32") == {"pairs": ["actors"], "learn": ["actors"], "score": ["actors"]}
    assert changed("seed=8") == {name: ["seed"] for name in stages}


def test_a_signal_that_comes_as_a_stage_ends_keeps_the_next_one_from_beginning(
    place: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    def signalled(folder: Path) -> Path:
        signal.raise_signal(signal.SIGTERM)
        return write_report(folder)

    monkeypatch.setattr(curate_degradations, "write_report", signalled)
    words = [*words_for(place, tiny_model_dir, {"pairs": PAIRS, "more": PAIRS}), "run.resume=auto"]
    home = place / "runs" / "line"
    assert main(words) == 130
    found = summary(home)
    assert (found["status"], found["error"], found["steps"]) == ("interrupted", None, 1)
    assert [row["status"] for row in found["pipeline"]["stages"]] == ["completed", "not_begun"]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert main(words) == 0
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["attempt"]) for line in lines] == [(1, 2), (2, 2)]


def test_signals_between_stages_interrupt_and_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
