"""A run whose processes are killed one after the other, each kind once, and the audit of what it left."""

from pathlib import Path

import pytest

from benchmarks.chaos import run_words, soak
from benchmarks.chaos_audit import Evidence, audit, table
from benchmarks.chaos_run import Soak
from tests.integration.harness import on_device, read_json, staged_leftovers

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
KILLS, SEED, STEPS = 5, 38, 60


def test_a_run_outlives_the_loss_of_each_of_its_processes(models_dir: Path, tmp_path: Path, device: str) -> None:
    staged, folder = staged_leftovers(), tmp_path / "runs" / "soaked"
    words = run_words(models_dir, folder, STEPS, on_device(device, replicas=2))
    run = Soak(words, folder, tmp_path / "output.txt", SEED, print)
    soak(run, KILLS, SEED, overlap=0.0, limit_s=500)
    found = Evidence.read(folder)
    verdicts = audit(found, run.noticed)
    assert [v for v in verdicts if v.violations] == [], table(verdicts)
    # What the soak itself says: each target was hit once, and the run told of every loss that it can see.
    assert sorted(k.target for k in run.kills) == ["engine", "job", "learner", "reward", "rollout"]
    assert run.noticed == {"rollout_lost": 2, "reward_lost": 1, "learner_restart": 1}
    assert run.starts == 2 and found.manifest["attempt"] == 3 and found.summary["restarts"] == 1
    assert read_json(folder / "summary.json")["groups"]["in_flight"] == 0
    assert staged_leftovers() - staged == set()
