"""The run folder: what it holds, what it refuses, what a resume changes."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.files import iter_json_lines, read_json, to_json, write_text_atomic
from launch.manifest import CODE_FOLDER, config_hash, git_state
from launch.redaction import is_secret_name, redact, redact_command
from launch.run_folder import RunFolder, run_path
from launch.summary import GroupCounts, RunSummary
from lwz_ray.errors import RewardFailure, UserError
from lwz_ray.evaluation import EvalSummary


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(**changes) -> RunSummary:
    fields = {
        "stage": "rl",
        "status": "completed",
        "steps": 20,
        "skipped_steps": 1,
        "policy_version": 19,
        "wall_s": 61.5,
        "groups": GroupCounts(admitted=90, trained=80, dropped={"stale": 7}, in_flight=3),
        "tokens_generated": 1000,
        "tokens_trained": 900,
        "active_rewards": ("length", "format"),
    }
    return RunSummary(**{**fields, **changes})


def test_config_and_manifest(make_config, tmp_path):
    config = make_config()
    folder = RunFolder.open(config, command=["python", "-m", "lwz_ray.main", "steps=20"], environ={})
    assert folder.path == tmp_path / "runs" / "trial"
    assert yaml.safe_load(folder.config.read_text()) == config.model_dump(mode="json")
    manifest = read_json(folder.manifest)
    assert manifest["name"] == "trial"
    assert manifest["attempt"] == 1
    assert manifest["command"] == ["python", "-m", "lwz_ray.main", "steps=20"]
    assert manifest["seeds"] == {"run": 1}
    assert manifest["git"] == {"revision": "0123abc", "dirty": None, "source": "run.git_revision"}
    assert manifest["versions"]["python"] == ".".join(str(n) for n in sys.version_info[:3])
    assert manifest["versions"]["torch"].startswith("2.")
    assert manifest["earlier_attempts"] == []
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    assert manifest["config_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert not list(folder.path.glob(".*"))


def test_hash_follows_the_config(make_config):
    assert config_hash(make_config()) == config_hash(make_config())
    assert config_hash(make_config()) != config_hash(make_config(seed=2))


def test_metrics_lines_are_on_disk_at_once(make_config):
    folder = RunFolder.open(make_config(), environ={})
    folder.append_metrics({"step": 1, "policy_version": 0, "train/loss": 0.25, "train/grad_norm": float("nan")})
    (line,) = lines(folder.metrics)
    assert line.pop("time").endswith("+00:00")
    assert line == {"step": 1, "policy_version": 0, "train/loss": 0.25, "train/grad_norm": None, "attempt": 1}
    with pytest.raises(ValueError, match="without 'step'"):
        folder.append_metrics({"train/loss": 0.25})


def test_sample_lines(make_config, make_sample):
    folder = RunFolder.open(make_config(), environ={})
    failed = make_sample(rewards={"length": 0.5, "writing": RewardFailure("writing", "timed out", "infrastructure")})
    folder.append_samples([make_sample(), failed], [0.75, -0.75], step=3, split="train")
    folder.append_samples([make_sample("写一篇\u2028短文")], [], step=3, split="eval_after")
    first, second, third = iter_json_lines(folder.samples)
    assert first == {
        "step": 3,
        "split": "train",
        "prompt_id": "p0",
        "prompt_index": 0,
        "language": "en",
        "length_range": [18, 22],
        "group_id": 10,
        "sample_index": 0,
        "prompt": "Write a tale of about 20 words.",
        "completion": "<answer>A short tale.</answer>",
        "num_words": 18,
        "num_tokens": 6,
        "well_formed": True,
        "rewards": {"length": 1.0, "format": 0.5},
        "measures": {"repetition": 0.0, "distinct_2": 1.0},
        "advantage": 0.75,
        "policy_version_min": 3,
        "policy_version_max": 4,
        "finish_reason": "stop",
        "attempt": 1,
    }
    assert second["rewards"] == {
        "length": 0.5,
        "writing": {"failure": "timed out", "blame": "infrastructure", "action": "drop_group"},
    }
    assert third["advantage"] is None
    assert third["completion"] == "写一篇\u2028短文"
    with pytest.raises(ValueError, match="1 samples, 2 advantages"):
        folder.append_samples([make_sample()], [0.1, 0.2], step=3, split="train")
    with pytest.raises(ValueError, match="'test' is none of train"):
        folder.append_samples([make_sample()], [0.1], step=3, split="test")


def test_summary_contract(make_config):
    folder = RunFolder.open(make_config(), environ={})
    counted = {"failures": {"infrastructure": {"learner_restart": 2}}, "restarts": 2, "lost_steps": 3}
    folder.write_summary(summary(status="failed", error="two\nlines", eval={"before": {}}, **counted))
    assert read_json(folder.summary) == {
        "stage": "rl",
        "status": "failed",
        "steps": 20,
        "skipped_steps": 1,
        "policy_version": 19,
        "wall_s": 61.5,
        "groups": {"admitted": 90, "trained": 80, "dropped": {"stale": 7}, "in_flight": 3},
        "tokens": {"generated": 1000, "trained": 900},
        "eval": {"before": {}},
        "active_rewards": ["length", "format"],
        "error": "two lines",
        "failures": {"infrastructure": {"learner_restart": 2}},
        "restarts": 2,
        "lost_steps": 3,
        "attempt": 1,
    }
    with pytest.raises(ValueError, match="a failed run, and only it, has an error"):
        summary(status="failed")


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not JSON"):
        list(iter_json_lines(path))


def test_a_finished_run_is_not_overwritten(make_config):
    folder = RunFolder.open(make_config(), environ={})
    again = RunFolder.open(make_config(), environ={})
    assert again.attempt == 2
    folder.append_metrics({"step": 1})
    with pytest.raises(UserError, match=r"already holds a run: choose another run\.name, or .* run\.resume=auto"):
        RunFolder.open(make_config(), environ={})


def test_names_that_leave_the_run_directory(make_config, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "trial").symlink_to(outside)
    with pytest.raises(UserError, match=r"run\.name='trial' leads out of run\.dir"):
        RunFolder.open(make_config(), environ={})
    assert list(outside.iterdir()) == []
    for name in ("../up", "a/b", "..", ".", "/etc", ""):
        run = make_config().run.model_copy(update={"name": name})
        with pytest.raises(UserError, match="leads out"):
            run_path(run)
        with pytest.raises(ValueError, match=r"run\.name"):
            make_config(run={"name": name})


def test_a_folder_that_cannot_be_made(make_config, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"cannot create .*trial \(Not a directory\)"):
        RunFolder.open(make_config(), environ={})


def test_secrets_stay_out(make_config):
    environ = {"HF_TOKEN": "hf_canary0123456789", "HOME": "/home/someone", "SHORT_TOKEN": "no"}
    config = make_config(data={"path": "https://user:hf_canary0123456789@hub/x.jsonl"})
    command = ["python", "-m", "lwz_ray.main", "note=hf_canary0123456789", "--api-key", "k1", "hub.token=k2", "steps=3"]
    folder = RunFolder.open(config, command=command, environ=environ)
    folder.warn("wandb", "refused the key hf_canary0123456789")
    folder.write_summary(summary(status="failed", error="401 for hf_canary0123456789"))
    for path in folder.path.rglob("*"):
        assert "canary" not in path.read_text(), path.name
    assert read_json(folder.manifest)["command"] == [
        "python",
        "-m",
        "lwz_ray.main",
        "note=[hidden]",
        "--api-key",
        "[hidden]",
        "hub.token=[hidden]",
        "steps=3",
    ]


def test_which_names_are_secret():
    secret = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "db.password", "Authorization", "auth_token_path")
    plain = (
        "sampling.max_tokens",
        "microbatch_tokens",
        "token_ids",
        "model.tokenizer",
        "TOKENIZERS_PARALLELISM",
        "key",
    )
    assert [n for n in secret if not is_secret_name(n)] == []
    assert [n for n in plain if is_secret_name(n)] == []
    assert redact_command(["sampling.max_tokens=64"], {}) == ["sampling.max_tokens=64"]
    assert redact({"a": ["x longsecret y", 3]}, {"MY_SECRET": "longsecret"}) == {"a": ["x [hidden] y", 3]}


def test_git_state_of_this_code_and_of_none(tmp_path):
    assert git_state(None, tmp_path) == {"revision": "unknown", "dirty": None, "source": "none"}
    repository = tmp_path / "repository"
    repository.mkdir()
    identity = {
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@b.c",
    }
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **identity}
    (repository / "code.py").write_text("x = 1\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", *arguments], cwd=repository, check=True, timeout=20, env=environ)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()
    assert git_state(None, repository) == {"revision": head, "dirty": False, "source": "git"}
    (repository / "code.py").write_text("x = 2\n")
    assert git_state(None, repository) == {"revision": head, "dirty": True, "source": "git"}
    (repository / "inner").mkdir()
    assert git_state(None, repository / "inner")["revision"] == "unknown"
    assert (CODE_FOLDER / "launch" / "manifest.py").is_file()


def test_evaluations_survive_a_restart(make_config):
    import numpy as np

    folder = RunFolder.open(make_config(), environ={})
    assert folder.read_evaluation("before") is None
    folder.write_evaluation("before", EvalSummary(("a", "b"), {"length": np.array([0.5, np.nan])}, 4, {"writing": 1}))
    kept = folder.read_evaluation("before")
    assert kept is not None
    assert (kept.prompt_ids, kept.num_samples, kept.failures) == (("a", "b"), 4, {"writing": 1})
    np.testing.assert_array_equal(kept.per_prompt["length"], [0.5, np.nan])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    write_text_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_json_knows_no_nan():
    import numpy as np

    text = to_json({"a": np.float32(0.5), "b": float("inf"), "c": np.array([1, 2]), "d": (np.int64(3), None, True)})
    assert text == '{"a": 0.5, "b": null, "c": [1, 2], "d": [3, null, true]}'
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json({"a": object()})


def test_a_warning_that_cannot_be_kept_is_logged(tmp_path, caplog):
    """Whoever warns of a loss goes on to replace what was lost, also where the disk is full or away."""
    folder = RunFolder(tmp_path, 1, environ={})
    folder.warnings.mkdir()
    folder.warn("rollout_lost", "rollout actor 2 was lost")
    assert "rollout_lost: rollout actor 2 was lost" in caplog.text
