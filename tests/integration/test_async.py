"""Weights over Ray's object store, and two rollout replicas that share the work: one run shows both."""

from pathlib import Path

import pytest

from launch.preflight_disk import num_parameters
from launch.setup_models import TINY_POLICY
from tests.integration.harness import on_device, read_json, read_lines, run_words, staged_leftovers, succeed

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
WORDS = (
    "steps=2",
    "weights.transport=object_store",
    "actors.replicas=2",
    "actors.num_cpus=0.5",
    "learners.num_cpus=0.4",
    "rewards.writing.path=null",
    "tracking.progress=false",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, device: str) -> Path:
    """Run two steps with two engines and a two-rank learner group."""
    place = tmp_path_factory.mktemp("async")
    staged = staged_leftovers()
    words = run_words(models_dir, place, "shared", *WORDS, *on_device(device, replicas=2))
    succeed(words, place / "output.txt")
    assert staged_leftovers() - staged == set()
    return place / "shared"


def test_every_engine_got_every_version(folder: Path, models_dir: Path):
    summary = read_json(folder / "summary.json")
    assert (summary["status"], summary["steps"], summary["policy_version"]) == ("completed", 2, 2)
    rows = read_lines(folder / "samples.jsonl")
    after = [r for r in rows if r["split"] == "eval_after"]
    # Groups go to the replica with the fewest open ones, so four at once reach both.
    assert len(after) == 4
    assert {(r["policy_version_min"], r["policy_version_max"]) for r in after} == {(2, 2)}
    last = read_lines(folder / "metrics.jsonl")[-1]  # the end of the run waits for its load
    assert last["weights/load_s"] > last["weights/pause_s"] >= last["weights/pause_mean_s"] > 0
    assert last["weights/stage_s"] > 0
    assert last["weights/bytes"] == 2 * num_parameters("model.path", str(models_dir / TINY_POLICY))
