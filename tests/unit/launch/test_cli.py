"""Exit codes and streams of the command line."""

from pathlib import Path

import pytest

from launch import cli
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from lwz_ray.failures import BudgetExceededError


@pytest.fixture(autouse=True)
def _report_passes_preflight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_user_error_of_a_stage_is_one_line_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["stage=report", "run.name=none", f"run.dir={tmp_path}"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("error: run.name=none: there is no run folder")


@pytest.mark.parametrize("words", [["stage=report"], ["stage=scale", "actors.replicas=2"]])
def test_a_stage_that_only_looks_has_no_plan(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main([*words, "dry_run=true"]) == 2
    assert capsys.readouterr().err == (
        f"error: dry_run=true: {words[0]} starts nothing that could be planned; leave it out\n"
    )


def test_an_exceeded_budget_is_one_line_and_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def fail(_: Config) -> None:
        raise BudgetExceededError("rollout_lost: 3 times, failures.max_rollout_losses=2 allows no more")

    monkeypatch.setattr(cli, "preflight", fail)
    assert cli.main(["run=smoke_cpu"]) == 1
    assert capsys.readouterr().err == ("error: rollout_lost: 3 times, failures.max_rollout_losses=2 allows no more\n")


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("two\nlines"), 1), (KeyboardInterrupt(), 130)])
def test_other_ends(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(_: Config) -> None:
        raise error

    monkeypatch.setattr(cli, "preflight", fail)
    assert cli.main(["run.name=x", "run.dir=/somewhere"]) == code
    lines = capsys.readouterr().err.splitlines()
    if code == 130:
        assert lines == ["interrupted"]
    else:
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1] == "error: RuntimeError: two lines; the run's files are in /somewhere/x"


@pytest.mark.parametrize(("kind", "code"), [(RuntimeError, 1), (UserError, 2)])
def test_an_error_shows_no_secret(
    kind: type[Exception], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(_: Config) -> None:
        raise kind("401 for Bearer hf_0123456789abcdef")

    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    monkeypatch.setattr(cli, "preflight", fail)
    assert cli.main(["run.name=x"]) == code
    said = capsys.readouterr().err
    assert "401 for Bearer [hidden]" in said.splitlines()[-1]
    assert "hf_0123456789abcdef" not in said


@pytest.mark.parametrize("words", [["--cfg", "job"], ["--cfg=job"]])
def test_cfg_job_prints_yaml(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main([*words, "steps=4"]) == 0
    assert "\nsteps: 4\n" in capsys.readouterr().out


def test_help_names_presets_groups_and_stages(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for line in (
        "  rl        train with GRPO",
        "  template   direct, plain, request, think",
        "  demo_cpu   a 135M model learns",
    ):
        assert line in text
