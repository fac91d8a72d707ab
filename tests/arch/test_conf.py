"""Every file under conf/ composes, every preset plans, and every key of the config has a reader."""

import ast
import json
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from launch.compose import CONF, compose
from launch.schema import known_keys

REPO_ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p.relative_to(CONF).as_posix() for p in CONF.rglob("*.yaml"))


def test_conf_is_this_repository():
    assert CONF == REPO_ROOT / "conf"
    assert FILES[0] == "actors/vllm.yaml"
    assert {p.name for p in CONF.rglob("*") if p.is_file() and p.suffix != ".yaml"} == set()


@pytest.mark.parametrize("file", [f for f in FILES if f != "config.yaml"])
def test_every_file_composes(file: str):
    group, _, name = file.removesuffix(".yaml").partition("/")
    config = compose([f"{group}={name}", *(["stage=pipeline"] if group == "pipeline" else [])])
    if group == "run":
        assert config.run.name == name
    else:
        # What a group file says arrives, unless the preset says otherwise.
        said = yaml.safe_load((CONF / file).read_text())
        section = getattr(config, group)
        assert set(said) - {"defaults"} <= set(type(section).model_fields)


@pytest.mark.parametrize("preset", [Path(f).stem for f in FILES if f.startswith("run/")])
def test_every_preset_plans(
    preset: str,
    models_dir: Path,
    tiny_classifier_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(REPO_ROOT)
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Topic {i}", "chosen": "A good text.", "rejected": "Bad."} for i in range(40)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # What another preset makes is not there on a fresh machine.
    made = {
        "demo_cpu": [f"rewards.writing.path={tiny_classifier_dir}"],
        "rm_demo": [f"preference.path={pairs}", "preference.eval_path=null"],
        "rm_degradations": [f"preference.path={pairs}", "preference.eval_path=null"],
    }
    assert main([f"run={preset}", f"run.dir={tmp_path}", "dry_run=true", *made.get(preset, [])]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"plan of {preset} (nothing is started)\n")
    assert ("does not fit" in printed.out, printed.err) == (False, "")


def test_every_key_has_a_reader():
    read: set[str] = set()
    for package in ("lwz_ray", "actors", "rewards", "learners", "launch"):
        for path in (REPO_ROOT / package).rglob("*.py"):
            if path != REPO_ROOT / "lwz_ray" / "config.py":
                nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                read |= {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    maps = ("rewards.weights.", "rewards.on_failure.", "rewards.deadline_s.")
    fields = [key for key in known_keys() if not key.startswith(maps)]
    assert [key for key in fields if key.rpartition(".")[2] not in read] == []
