"""The front door as a user meets it: each mistake is one line that names thing, value and remedy, and exit code 2."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """Return a folder with a good prompt file, an empty and a malformed one, and a model without chat template."""
    shutil.copytree(tiny_model_dir, tmp_path / "untemplated")
    (tmp_path / "untemplated" / "chat_template.jinja").unlink()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "malformed.jsonl").write_text('{"prompt": "Write about 800 words."}\n{"prompt": 800 words}\n')
    return tmp_path


def front_door(repo_root: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")}
    return subprocess.run(
        [sys.executable, "-m", "lwz_ray.main", *argv],
        cwd=repo_root,
        env=env | {"HF_HUB_OFFLINE": "1"} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["stepz=5"], "error: unknown key 'stepz': did you mean 'steps'?"),
        (["+stepz=5"], "error: unknown key 'stepz': did you mean 'steps'?"),
        (["++data.pathh=x"], "error: unknown key 'data.pathh': did you mean 'data.path'?"),
        (["steps=many"], "error: steps='many' (str): needs an integer > 0"),
        (["group_size=1"], "error: group_size=1: GRPO compares samples of one prompt, a group needs at least 2"),
        (["max_staleness=-1"], "error: max_staleness=-1 (int): needs an integer >= 0"),
        (["run=dmo_cpu"], "error: run='dmo_cpu': no such choice, did you mean 'demo_cpu'? (there are "),
        (["run.name=../escape"], "error: run.name='../escape' (str): needs text"),
        (["model.path={folder}/nope"], "error: model.path='{folder}/nope': no such folder; name a Hugging Face folder"),
        (
            ["model.path={folder}/untemplated"],
            "error: model.path='{folder}/untemplated': its tokenizer has no chat template, which template.chat=true "
            "needs; use template.chat=false",
        ),
        (["data.path={folder}/empty.jsonl"], "error: {folder}/empty.jsonl is empty: 0 of 0 rows; name another source"),
        (
            ["data.path={folder}/malformed.jsonl"],
            "error: {folder}/malformed.jsonl, line 2: not JSON at column 16 (Expecting ',' delimiter); correct it, or "
            "leave such rows out with data.on_bad_row=skip",
        ),
        (
            ["rewards.writing.path=models/tiny-random"],
            "error: rewards.writing.path='{root}/models/tiny-random': LlamaForCausalLM with 2 outputs (id2label); a "
            "reward model is a …ForSequenceClassification with num_labels=1",
        ),
        (["--cfg"], "error: --cfg '': only --cfg job is known; it prints the resolved config"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str, folder: Path, repo_root: Path, models_dir: Path):
    fill = {"{folder}": str(folder), "{root}": str(repo_root)}
    for slot, value in fill.items():
        words, line = [w.replace(slot, value) for w in words], line.replace(slot, value)
    done = front_door(repo_root, f"run.dir={folder}/runs", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(line)
    assert not (repo_root / "outputs").exists()
    assert not (folder / "runs").exists()


def test_a_mistake_is_answered_at_once(repo_root: Path):
    start = time.perf_counter()
    assert front_door(repo_root, "stepz=5").returncode == 2
    assert time.perf_counter() - start < 10  # about half a second on an idle machine


def test_the_front_door_loads_no_heavy_library(repo_root: Path):
    code = "import sys, launch.cli; print(sorted({'torch', 'ray', 'vllm', 'transformers', 'wandb'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_help_and_config_are_printed(repo_root: Path):
    done = front_door(repo_root, "--help")
    assert done.returncode == 0
    presets = sorted(path.stem for path in (repo_root / "conf" / "run").glob("*.yaml"))
    assert "zero_smoke" in presets
    assert f"  run        {', '.join(presets)}\n" in done.stdout
    done = front_door(repo_root, "run=demo_cpu", "--cfg", "job", "steps=5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nsteps: 5\n" in done.stdout


def test_the_paper_preset_plans_here(repo_root: Path):
    done = front_door(repo_root, "run=paper_32b", "dry_run=true")
    assert (done.returncode, done.stderr) == (0, "")
    assert "192 CPUs, 64 GPUs; the cluster has 8 nodes x 8 = 64 GPUs: fits" in done.stdout
    assert "32,763,876,352 parameters" in done.stdout


def test_a_submitted_job_must_write_outside_its_folder(repo_root: Path):
    job = '{"metadata": {"job_submission_id": "raysubmit_x"}}'
    done = front_door(repo_root, RAY_JOB_CONFIG_JSON_ENV_VAR=job)
    assert done.returncode == 2
    assert done.stderr.startswith("error: run.dir='runs', model.path='models/tiny-random', ")
    assert done.stderr.endswith("give absolute paths on storage that every node sees\n")
