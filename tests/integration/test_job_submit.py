"""`ray job submit` against a cluster of the test's own, with token authentication, as the README tells it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import (
    Finished,
    assert_balanced,
    complete_checkpoints,
    on_device,
    read_json,
)
from tests.integration.ray_nodes import BIN, RayNodes, holders_of, own_ray_nodes

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    """Run `ray start --head` with a token that `ray get-auth-token --generate` made in a home of its own."""
    with own_ray_nodes() as nodes:
        nodes.token = nodes.ray("get-auth-token", "--generate").stdout.strip()
        assert len(nodes.token) >= 32
        assert nodes.token_file.exists()
        nodes.start_head([str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"], "--num-cpus=2")
        yield nodes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder outside the repository and the job's own."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def job(cluster: RayNodes, shared: Path, models_dir: Path, device: str) -> Finished:
    """Submit the smoke preset with absolute paths."""
    words = ["run=smoke_cpu", f"run.dir={shared}/runs", f"model.path={models_dir}/tiny-random"]
    return cluster.submit(*words, f"rewards.writing.path={models_dir}/tiny-classifier", *on_device(device))


def test_without_the_token_the_cluster_refuses(cluster: RayNodes):
    stranger = {k: v for k, v in cluster.env.items() if k != "RAY_AUTH_MODE"} | {"HOME": str(cluster.folder)}
    done = cluster.ray("job", "list", env=stranger)
    assert done.returncode != 0
    assert "Authentication required" in done.stdout + done.stderr


def test_the_job_leaves_a_whole_run_folder(job: Finished, shared: Path):
    assert job.returncode == 0, job.output[-4000:]
    assert "succeeded" in job.output
    folder = shared / "runs" / "smoke_cpu"
    summary = read_json(folder / "summary.json")
    assert (summary["status"], summary["steps"], summary["policy_version"]) == ("completed", 3, 3)
    assert_balanced(summary["groups"])
    assert complete_checkpoints(folder) == [2, 3]
    assert (folder / "report.html").exists()
    assert (folder / "export" / "model.safetensors").exists()
    assert read_json(folder / "manifest.json")["git"] == {"revision": "unknown", "dirty": None, "source": "none"}


def test_the_token_is_written_nowhere(cluster: RayNodes, job: Finished, shared: Path):
    assert cluster.token not in job.output
    assert (shared / "runs" / "smoke_cpu" / "manifest.json").exists()
    assert holders_of(cluster.token, shared) == []


def test_only_the_code_travels(cluster: RayNodes, job: Finished):
    assert job.returncode == 0
    (copy,) = (cluster.folder / "ray").glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    names = {p.name for p in copy.iterdir()}
    assert {"lwz_ray", "actors", "rewards", "learners", "launch", "conf"} <= names
    assert names & {".git", ".venv", "models", "runs", "outputs", "wandb"} == set()
    assert (copy / "lwz_ray" / "prompts" / "train.jsonl").exists()
    assert sum(p.stat().st_size for p in copy.rglob("*") if p.is_file()) < 5 * 2**20


def test_a_place_that_a_job_would_lose_is_refused(cluster: RayNodes):
    done = cluster.submit("run=smoke_cpu", timeout_s=90)
    assert done.returncode != 0
    # Ray shows the job's log, and its end again under the status.
    (line,) = set(done.lines("error: "))
    assert line.startswith("error: run.dir='runs', model.path='models/tiny-random', ")
    assert "relative, or inside the temporary folder of this submitted Ray job" in line
