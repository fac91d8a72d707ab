"""Pipelines of stages that need no engine: what is refused before the first, and what is planned."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.cli import main
from launch.compose import compose
from launch.pipeline_disk import check_pipeline_disk, disk_needs
from launch.pipeline_stages import plan_stage, plan_stages
from lwz_ray.errors import UserError
from tests.unit.launch.pipeline_parts import PAIRS, error_of, own_place, words_for


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_place(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("stages", "more", "expected"),
    [
        ({"a": ["template=think"]}, {}, "pipeline.stages.a.words names none: one stage=… is needed, of rl, train_rm"),
        ({"a": ["stage=pipeline"]}, {}, "pipeline.stages.a.words names stage=pipeline: one stage=… is needed"),
        ({"a": ["stage=rl", "run.name=x"]}, {}, "pipeline.stages.a.words: 'run.name=x' sets run.name, which the"),
        ({"lease": ["stage=rl"]}, {}, "pipeline.stages.lease: this name has another meaning"),
        (
            {"a": ["stage=rl"], "b": ["stage=sft", "model.path={c}/export"]},
            {},
            "pipeline.stages.b: needs 'c', which is no stage before it (before it are: a)",
        ),
        ({"a": ["stage=rl"]}, {"words": {"b": []}}, "pipeline.words.b: no such stage; there are a and all"),
        ({"a": ["stage=rl"]}, {"arms": {"x": "b"}}, "pipeline.arms.x='b': no such stage; there are a"),
        ({"a": ["stage=rl"]}, {"arms": {"x": "a"}}, "pipeline.arms.x='a': that stage evaluates nothing"),
        ({}, {}, "stage=pipeline without stages: choose a recipe, such as pipeline=zero or run=zero_smoke"),
        ({"a": ["stage=rl", "stepz=1"]}, {}, "stage a of the pipeline: unknown key 'stepz': did you mean 'steps'?"),
    ],
)
def test_what_a_pipeline_may_not_say(
    place: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], stages: Any, more: Any, expected: str
):
    assert error_of(words_for(place, tiny_model_dir, stages, **more), capsys).startswith(f"error: {expected}")


def test_a_recipe_alone_runs_no_other_stage(capsys: pytest.CaptureFixture[str]):
    assert error_of(["pipeline=zero"], capsys) == (
        "error: pipeline=zero without stage=pipeline would run stage=rl alone: add stage=pipeline"
    )


def test_the_command_is_not_for_the_user_to_set(place: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]):
    words = [*words_for(place, tiny_model_dir, {"a": PAIRS}), "pipeline.command=['steps=1']"]
    assert error_of(words, capsys).startswith("error: pipeline.command is set by the front door")


def test_words_are_laid_over_each_other(place: Path, tiny_model_dir: Path):
    stages = {
        "first": ["stage=rl", "steps=5", "seed=5"],
        "second": ["stage=sft", "model.path={first}/export", "sft.max_tokens={first.tokens.trained}"],
        "third": ["stage=rl", "template.en=Please: {request}", "rewards={weights: {length: 0.5}}"],
    }
    words = words_for(place, tiny_model_dir, stages, words={"all": ["seed=6"], "third": ["steps=7"]})
    config = compose([*words, "steps=4", "group_size=3"])
    first, second, third = (plan_stage(config, name) for name in stages)
    home = place / "runs" / "line"
    assert (first.config.steps, first.config.seed, first.config.group_size) == (5, 6, 3)
    assert (second.config.steps, third.config.steps) == (4, 7)
    assert (first.waits_for, second.waits_for) == ((), ("first",))
    assert second.folder == home / "second"
    # What is still to be measured is 1 for the time being.
    assert (second.config.model.path, second.config.sft.max_tokens) == (f"{home}/first/export", 1)
    assert (third.config.template.en, third.config.rewards.weights["length"]) == ("Please: {request}", 0.5)
    assert (first.config.run.resume, first.config.run.dir, first.config.pipeline.stages) == ("auto", str(home), {})

    (home / "first").mkdir(parents=True)
    told = {"status": "completed", "tokens": {"trained": 4321}}
    (home / "first" / "summary.json").write_text(json.dumps(told))
    second = plan_stage(config, "second")
    assert (second.waits_for, second.config.sft.max_tokens) == ((), 4321)
    (home / "first" / "summary.json").write_text(json.dumps({**told, "tokens": {"trained": 0}}))
    with pytest.raises(
        UserError, match=r"\{first.tokens.trained\}: tokens.trained=0 in .*: a number above 0 is needed"
    ):
        plan_stage(config, "second")


def test_a_mistake_in_the_last_stage_shows_before_the_first(
    place: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    stages = {"pairs": PAIRS, "more": [*PAIRS, "curate.texts_path=nowhere.jsonl"]}
    error = error_of(words_for(place, tiny_model_dir, stages), capsys)
    assert error.startswith("error: stage more of the pipeline: ")
    assert "nowhere.jsonl" in error
    assert not (place / "runs").exists()
    # A policy that is still to be trained has the positions of the one that it starts from: 8,192.
    long = ["model.max_length_tokens=9000", "learners.microbatch_tokens=9000"]
    stages = {"one": ["stage=rl"], "two": ["stage=rl", "model.path={one}/export", *long]}
    error = error_of(words_for(place, tiny_model_dir, stages), capsys)
    assert error.startswith("error: stage two of the pipeline: model.max_length_tokens=9000 exceeds the 8192 positions")
    # The rest of a stage is looked at without the reward model that is still to be made.
    training = ["preference.path={pairs}/pairs.jsonl", "preference.eval_path=null", "learners.microbatch_tokens=1024"]
    learning = ["stage=rl", "rewards.writing.path={rm}/export", "eval.path=no.jsonl"]
    stages = {"pairs": PAIRS, "rm": ["stage=train_rm", *training], "learn": learning}
    error = error_of(words_for(place, tiny_model_dir, stages), capsys)
    assert error.startswith("error: stage learn of the pipeline: eval.path: ")
    # What only the stage before writes may be missing.
    stages = {"pairs": PAIRS, "rm": ["stage=train_rm", *training]}
    assert main([*words_for(place, tiny_model_dir, stages), "dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert "pipeline of 2 stages, one after the other\n   1 pairs  new\n" in printed
    assert "   2 rm     new; needs pairs\n" in printed
    assert "  stage rm: learner rank, 2 processes, each:\n" in printed


def test_the_disk_of_all_stages_together_is_counted(place: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = ["run.keep_checkpoints=1", "run.checkpoint_every_steps=2", "steps=6", "weights.staging_dir=/dev/shm"]
    stages = {"one": ["stage=rl", *sizes], "two": ["stage=rl", "model.path={one}/export", *sizes]}
    config = compose(words_for(place, tiny_model_dir, stages))
    # 3,244,352 parameters: 12 bytes of each in a checkpoint, 2 in an export; one checkpoint is written beside the kept.
    checkpoint, export = 3_244_352 * 12, 3_244_352 * 2
    planned = list(plan_stages(config))
    needs = disk_needs(config, planned)
    assert needs == {"one": checkpoint + export, "two": checkpoint + export, "while one of them runs": checkpoint}
    free = 3 * checkpoint + 2 * export - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=r"exports need 0\.12 GiB = one 0\.04 \+ two 0\.04 \+ while one of"):
        check_pipeline_disk(config, planned)
    free += 1
    check_pipeline_disk(config, planned)
    # Staged weights are given back by each stage, and a critic that is still to be trained is as large as the policy.
    more = ["weights.staging_dir=.", "critic.path={one}/export", "algorithm=ppo", "critic.warmup_steps=1"]
    stages = {"one": ["stage=rl", *sizes, "weights.staging_dir=."], "two": ["stage=rl", *sizes, *more]}
    config = compose(words_for(place, tiny_model_dir, stages))
    needs = disk_needs(config, list(plan_stages(config)))
    # Two versions of the policy's weights are staged.
    both, staged = 2 * checkpoint, 2 * export
    assert needs == {"one": checkpoint + export, "two": both + export, "while one of them runs": both + staged}
