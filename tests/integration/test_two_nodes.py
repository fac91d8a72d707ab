"""A job submitted to two Ray nodes of one machine, as the recipe starts them: learners on one, engines on the other."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from launch.preflight_disk import num_parameters
from launch.setup_models import TINY_POLICY
from tests.integration.harness import (
    REPO_ROOT,
    Finished,
    assert_balanced,
    complete_checkpoints,
    on_device,
    read_json,
    read_lines,
    staged_leftovers,
)
from tests.integration.ray_nodes import ANY_WORKER_PORT, BIN, RayNodes, holders_of, own_ray_nodes

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
NODE = str(REPO_ROOT / "launch" / "clusters" / "node.sh")


@dataclass(frozen=True)
class Job:
    """What became of the submitted job."""

    done: Finished
    shared: Path
    """A folder outside the repository and the job's own."""
    new_staged: set[str]

    @property
    def folder(self) -> Path:
        return self.shared / "runs" / "smoke_cpu"


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head for the learners, which makes the token, and a node for engines, which gets it by its environment."""
    with own_ray_nodes() as nodes:
        head = [NODE, "head"]
        nodes.start_head(head, "--num-cpus=1", '--resources={"learner": 2}', *ANY_WORKER_PORT)
        nodes.token = nodes.token_file.read_text().strip()
        env = stranger(nodes) | {"RAY_AUTH_TOKEN": nodes.token}
        worker = nodes.start_worker(
            [NODE, "worker", nodes.address], "127.0.0.2", env, "--num-cpus=1", '--resources={"rollout": 2}',
            *ANY_WORKER_PORT,
        )  # fmt: skip
        worker.wait_until(lambda: "Ray runtime started" in worker.output, 60, "the second node to join")
        yield nodes


def stranger(nodes: RayNodes) -> dict[str, str]:
    """Return the environment of another machine's user: a home without a token."""
    (nodes.folder / "elsewhere").mkdir(exist_ok=True)
    left_out = ("RAY_AUTH_MODE", "RAY_ADDRESS")
    return {k: v for k, v in nodes.env.items() if k not in left_out} | {"HOME": str(nodes.folder / "elsewhere")}


@pytest.fixture(scope="module")
def job(nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory, models_dir: Path, device: str) -> Job:
    """Submit the smoke preset with shorter texts and absolute paths, learners and engines each bound to a node."""
    shared, staged = tmp_path_factory.mktemp("shared"), staged_leftovers()
    # Ray CPUs: 2 * 0.4 on the engines' node, 2 * 0.1 + 2 * 0.4 on the head.
    done = nodes.submit(
        "run=smoke_cpu", f"run.dir={shared}/runs", f"model.path={models_dir}/tiny-random",
        f"rewards.writing.path={models_dir}/tiny-classifier", "eval.num_prompts=4", "sampling.max_tokens=16",
        "learners.resources={learner: 1}", "actors.resources={rollout: 1}", "actors.replicas=2", "actors.num_cpus=0.4",
        *on_device(device, replicas=2),
    )  # fmt: skip
    return Job(done, shared, staged_leftovers() - staged)


def test_the_job_leaves_a_whole_run_folder(job: Job):
    assert job.done.returncode == 0, job.done.output[-4000:]
    assert "succeeded" in job.done.output
    summary = read_json(job.folder / "summary.json")
    assert (summary["status"], summary["steps"], summary["policy_version"]) == ("completed", 3, 3)
    assert_balanced(summary["groups"])
    assert complete_checkpoints(job.folder) == [2, 3]
    assert (job.folder / "report.html").exists()
    assert (job.folder / "export" / "model.safetensors").exists()
    assert read_json(job.folder / "manifest.json")["git"] == {"revision": "unknown", "dirty": None, "source": "none"}


def test_learners_and_engines_lie_on_different_nodes(job: Job):
    rows = read_json(job.folder / "placement.json")["bundles"]
    addresses = {row["room"]: row["address"] for row in rows}
    assert addresses["actors"] == "127.0.0.2" != addresses["learners"]
    nodes = {room: {row["node_id"] for row in rows if row["room"] == room} for room in ("learners", "actors")}
    assert len(nodes["learners"]) == len(nodes["actors"]) == 1
    assert nodes["learners"] != nodes["actors"]
    assert {row["room"]: row["strategy"] for row in rows} == {
        "learners": "STRICT_PACK", "actors": "SPREAD", "rewards": "SPREAD",
    }  # fmt: skip
    assert "learners 2" in job.done.output.partition("placement\n")[2]


def test_every_engine_got_every_version_from_the_other_node(job: Job, models_dir: Path):
    lines = read_lines(job.folder / "metrics.jsonl")
    assert [line["policy_version"] for line in lines] == [1, 2, 3]
    last = lines[-1]  # the end of the run waits for its load
    assert last["weights/load_s"] > last["weights/pause_s"] >= last["weights/pause_mean_s"] > 0
    assert last["weights/stage_s"] > 0
    assert last["weights/bytes"] == 2 * num_parameters("model.path", str(models_dir / TINY_POLICY))
    after = [r for r in read_lines(job.folder / "samples.jsonl") if r["split"] == "eval_after"]
    # Four groups at once reach both engines, whichever has more room.
    assert len(after) == 4
    assert {(r["policy_version_min"], r["policy_version_max"]) for r in after} == {(3, 3)}
    # Log-probabilities of the engines' own tokens, by the learner: the same weights on both sides.
    probe = read_json(job.folder / "summary.json")["probe"]
    assert (len(probe["engines"]), probe["off"]) == (2, [])
    assert job.new_staged == set()


def test_only_the_code_travels(nodes: RayNodes, job: Job):
    assert job.done.returncode == 0
    (copy,) = (nodes.folder / "ray").glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    names = {p.name for p in copy.iterdir()}
    assert {"lwz_ray", "actors", "rewards", "learners", "launch", "conf"} <= names
    assert names & {".git", ".venv", "models", "runs", "outputs", "wandb"} == set()
    assert (copy / "lwz_ray" / "prompts" / "train.jsonl").exists()
    assert sum(p.stat().st_size for p in copy.rglob("*") if p.is_file()) < 5 * 2**20


def test_the_token_is_written_nowhere(nodes: RayNodes, job: Job):
    assert len(nodes.token) >= 32
    assert nodes.token_file.stat().st_mode & 0o077 == 0
    assert nodes.token not in job.done.output + "".join(child.output for child in nodes.children)
    assert (job.folder / "manifest.json").exists()
    assert holders_of(nodes.token, job.shared) == []
    assert holders_of(nodes.token, nodes.folder / "ray") == []
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if nodes.token in line] == []


def test_a_place_that_a_job_would_lose_is_refused(nodes: RayNodes):
    done = nodes.submit("run=smoke_cpu", timeout_s=90)
    assert done.returncode != 0
    # Ray shows the job's log, and its end again under the status.
    (line,) = set(done.lines("error: "))
    assert line.startswith("error: run.dir='runs', model.path='models/tiny-random', ")
    assert "relative, or inside the temporary folder of this submitted Ray job" in line


def test_a_node_without_the_token_does_not_join(nodes: RayNodes):
    command = [NODE, "worker", nodes.address, "--node-ip-address=127.0.0.3"]
    env = stranger(nodes)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"node.sh: no token: copy the head's {env['HOME']}/.ray/auth_token here")
    wrong = nodes.ray("job", "list", env=nodes.env | {"RAY_AUTH_TOKEN": "0" * 64})
    assert wrong.returncode != 0
    assert "token" in (wrong.stdout + wrong.stderr).lower()


def test_ray_asks_for_a_token_where_its_head_found_one():
    """As the README starts a cluster: `ray start --head` beside the file that `ray get-auth-token --generate` wrote."""
    with own_ray_nodes() as nodes:
        token = nodes.ray("get-auth-token", "--generate").stdout.strip()
        assert len(token) >= 32
        assert nodes.token_file.exists()
        nodes.start_head([str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"], "--num-cpus=1")
        env = {k: v for k, v in nodes.env.items() if k != "RAY_AUTH_MODE"} | {"HOME": str(nodes.folder)}
        done = nodes.ray("job", "list", env=env)
        assert done.returncode != 0
        assert "Authentication required" in done.stdout + done.stderr
