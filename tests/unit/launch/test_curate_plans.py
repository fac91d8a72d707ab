"""`recipe=distill_plans` through the front door: a run folder in, documents, summary and report out."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.compose import compose, to_yaml
from launch.report_data import read_run
from launch.report_plans import plan_sections
from lwz_ray.corpus import load_corpus, split_documents
from tests.corpus_parts import changed, word_tokenizer


def sample(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": number,
        "split": "train",
        "prompt_id": f"p{number}",
        "language": "en",
        "prompt": f"Write about {number}.",
        "sample_index": 0,
        "completion": f" Part {number} first. Then the rest.</think><answer>Text.</answer>",
        "rewards": {"length": 0.8},
        **changes,
    }


def write_run(folder: Path, template: str, lines: list[dict[str, Any]]) -> Path:
    """Write what is read of a run folder; its last line is cut, as a run that goes on leaves it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(compose([f"template={template}"])))
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "pro')
    return folder


def distil(source: Path, out: Path, *words: str) -> int:
    run = [f"run.dir={out}", "run.name=plans", "tracking.wandb=false", f"curate.plans.run={source}"]
    return main(["stage=curate", "recipe=distill_plans", "curate.plans.min_plan_words=3", *run, *words])


@pytest.mark.parametrize("config", ["a: [", "hello", "template: 3"])
def test_a_broken_config_is_one_line(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]):
    source = write_run(tmp_path / "rl", "think", [sample(1)])
    (source / "config.yaml").write_text(config)
    assert distil(source, tmp_path) == 2
    found = capsys.readouterr().err
    assert found.startswith("error: ") and f"{source}" in found and found.count("\n") == 1


def test_a_run_gives_documents_that_pretraining_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [sample(1), sample(2), sample(3, split="eval_after"), sample(4, rewards={"length": 0.1})]
    source = write_run(tmp_path / "rl", "think", lines)
    assert distil(source, tmp_path) == 0
    out = tmp_path / "plans"
    assert f"2 plans of 4 samples: {out / 'plans.jsonl'}" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["stage"], summary["status"], summary["error"]) == ("curate", "completed", None)
    found = summary["curate"]
    assert (found["run"], found["run_status"], found["plans"]) == (str(source), None, {"en": 2, "zh": 0})
    assert {k: n for k, n in found["samples"].items() if n} == {"read": 4, "kept": 2, "held_out": 1, "low_reward": 1}
    assert found["plan_words"] == {"mean": 6.0, "least": 6, "most": 6}
    metrics = json.loads((out / "metrics.jsonl").read_text())
    assert (metrics["curate/samples"], metrics["curate/plans"], metrics["curate/plan_words"]) == (4, 2, 6.0)
    tables = plan_sections(read_run(out, 3))
    assert ("left out: held out", "1") in tables[0].rows
    assert tables[1].rows[0] == ("Write about 1.", "Part 1 first. Then the rest.", "6")
    assert "Samples to held-out prompts are never taken" in (out / "report.html").read_text()

    sources = {"plans": {"path": str(out / "plans.jsonl"), "split": "train", "column": "text", "weight": 1.0}}
    config = changed("pretrain", {"sources": sources, "held_out_documents": 1}, 32)
    assert split_documents(config)[0]["plans"].text(0).startswith("Write about 1.\n\n<think>\nPart 1 first.")
    assert load_corpus(config, word_tokenizer()).next()

    # Again, over what an interrupted attempt left: the whole is made anew, and earlier lines are marked.
    assert distil(source, tmp_path, "run.resume=auto", "curate.plans.max_plans=1") == 0
    assert len((out / "plans.jsonl").read_text().splitlines()) == 1
    marked = [json.loads(line).get("superseded", False) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert marked == [True, False]


def test_a_run_without_plans_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def refused(source: Path | str, *words: str) -> str:
        assert distil(Path(source), tmp_path, *words) == 2
        return capsys.readouterr().err.splitlines()[0]

    assert "has no config.yaml; name the run folder of a stage=rl" in refused(tmp_path)
    direct = write_run(tmp_path / "direct", "direct", [sample(1)])
    assert "its template.arm is direct, so it holds no plans; use template=think" in refused(direct)
    other = write_run(tmp_path / "other", "think", [sample(1)])
    (other / "config.yaml").write_text(to_yaml(compose(["stage=sft", "template=think"])))
    assert "a run of stage=sft; name the run folder of a stage=rl" in refused(other)
    # Nothing was begun so far: the folder is not there.
    assert not (tmp_path / "plans").exists()
    none = write_run(tmp_path / "none", "think", [sample(1, rewards={"length": 0.2}), sample(2, split="eval_before")])
    line = refused(none)
    assert "none of its 2 samples gives a plan (1 held_out, 1 low_reward); lower curate.plans.min_reward" in line
    summary = json.loads((tmp_path / "plans" / "summary.json").read_text())
    assert (summary["status"], summary["curate"]["samples"]["low_reward"]) == ("failed", 1)
    assert main(["stage=curate", "recipe=distill_plans", f"run.dir={tmp_path}", "run.name=x"]) == 2
    assert "recipe=distill_plans needs a run: curate.plans.run=FOLDER" in capsys.readouterr().err


def test_the_plan_starts_nothing(tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]):
    source = write_run(tmp_path / "rl", "think", [sample(1)])
    assert distil(source, tmp_path, "dry_run=true", f"model.path={tiny_model_dir}", "curate.plans.max_plans=7") == 0
    printed = capsys.readouterr().out
    assert f"at most 7 plans of the samples of {source}" in printed
    assert "no model is needed: none of the Ray actors of this plan is started" in printed
