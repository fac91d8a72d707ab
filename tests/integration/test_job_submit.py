"""`ray job submit` against a cluster of the test's own, with token authentication, as the README tells it."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.harness import (
    REPO_ROOT,
    Child,
    Finished,
    assert_balanced,
    complete_checkpoints,
    environment,
    on_device,
    read_json,
)

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
BIN = Path(sys.executable).parent
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")


@dataclass(frozen=True)
class Cluster:
    """A head node with two CPUs; `env` holds its dashboard's address and a home of its own with the token."""

    folder: Path
    env: dict[str, str]
    token: str

    def submit(self, *words: str, timeout_s: float = 200.0) -> Finished:
        """Submit the front door from the repository's folder and wait for the job's end."""
        command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "lwz_ray.main", *words]
        log = self.folder / f"job-{len(list(self.folder.glob('job-*')))}.txt"
        return Child([str(c) for c in command], log, REPO_ROOT, self.env).finish(timeout_s)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def ray_command(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "ray", *words], env=env, capture_output=True, text=True, timeout=60, cwd="/")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Run `ray start --head` with a token in a home of its own; end its processes, and no one else's, by their ids."""
    # Ray puts sockets below this folder, and a socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="lwz", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "home").mkdir()
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        # Ray strips nothing from PATH: the job's `python` is this environment's.
        env = environment(HOME=str(folder / "home"), PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
        env = {k: v for k, v in env.items() if not k.startswith("RAY_AUTH")}
        token = ray_command(env, "get-auth-token", "--generate").stdout.strip()
        assert len(token) >= 32
        assert (folder / "home" / ".ray" / "auth_token").exists()
        # The head finds the token by itself; Ray's job client sends it only where the mode is set.
        env["RAY_AUTH_MODE"] = "token"
        env["RAY_ADDRESS"] = f"http://127.0.0.1:{ports['dashboard-port']}"
        head = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
        head += ["--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}/ray", "--object-store-memory=500000000"]
        head += [f"--{key}={port}" for key, port in ports.items()]
        without_address = {k: v for k, v in env.items() if k != "RAY_ADDRESS"}
        child = Child([str(h) for h in head], folder / "head.txt", Path("/"), without_address)
        try:
            child.wait_until(lambda: ray_command(env, "job", "list").returncode == 0, 90, "the dashboard to answer")
            yield Cluster(folder, env, token)
        finally:
            stop(child, folder)


def stop(child: Child, folder: Path) -> None:
    """Ask the head to end, then kill what still names the cluster's own folder."""
    child.process.terminate()
    try:
        child.process.wait(30)
    except subprocess.TimeoutExpired:
        child.kill()
    mine = [p for p in psutil.process_iter(["cmdline"]) if any(str(folder) in w for w in p.info["cmdline"] or ())]
    for process in mine:
        process.kill()
    psutil.wait_procs(mine, timeout=10)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder outside the repository and the job's own."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def job(cluster: Cluster, shared: Path, models_dir: Path, device: str) -> Finished:
    """Submit the smoke preset with absolute paths."""
    words = ["run=smoke_cpu", f"run.dir={shared}/runs", f"model.path={models_dir}/tiny-random"]
    return cluster.submit(*words, f"rewards.writing.path={models_dir}/tiny-classifier", *on_device(device))


def test_without_the_token_the_cluster_refuses(cluster: Cluster):
    stranger = {k: v for k, v in cluster.env.items() if k != "RAY_AUTH_MODE"} | {"HOME": str(cluster.folder)}
    done = ray_command(stranger, "job", "list")
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


def test_the_token_is_written_nowhere(cluster: Cluster, job: Finished, shared: Path):
    assert cluster.token not in job.output
    files = [p for p in (shared / "runs").rglob("*") if p.is_file()]
    assert files
    assert [str(p) for p in files if cluster.token.encode() in p.read_bytes()] == []


def test_only_the_code_travels(cluster: Cluster, job: Finished):
    assert job.returncode == 0
    (copy,) = (cluster.folder / "ray").glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    names = {p.name for p in copy.iterdir()}
    assert {"lwz_ray", "actors", "rewards", "learners", "launch", "conf"} <= names
    assert names & {".git", ".venv", "models", "runs", "outputs", "wandb"} == set()
    assert (copy / "lwz_ray" / "prompts" / "train.jsonl").exists()
    assert sum(p.stat().st_size for p in copy.rglob("*") if p.is_file()) < 5 * 2**20


def test_a_place_that_a_job_would_lose_is_refused(cluster: Cluster):
    done = cluster.submit("run=smoke_cpu", timeout_s=90)
    assert done.returncode != 0
    # Ray shows the job's log, and its end again under the status.
    (line,) = set(done.lines("error: "))
    assert line.startswith("error: run.dir='runs', model.path='models/tiny-random', ")
    assert "relative, or inside the temporary folder of this submitted Ray job" in line
