"""Two Ray nodes on one machine, started by the recipe's script: learners on one, engines on the other."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.harness import REPO_ROOT, Finished, assert_balanced, on_device, read_json, read_lines
from tests.integration.ray_nodes import ANY_WORKER_PORT, RayNodes, holders_of, own_ray_nodes

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
NODE = str(REPO_ROOT / "launch" / "clusters" / "node.sh")


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head for the learners, which makes the token, and a node for engines, which gets it by its environment."""
    with own_ray_nodes() as nodes:
        head = [NODE, "head"]
        nodes.start_head(head, "--num-cpus=1", '--resources={"learner": 2}', *ANY_WORKER_PORT)
        nodes.token = nodes.token_file.read_text().strip()
        env = stranger(nodes) | {"RAY_AUTH_TOKEN": nodes.token}
        worker = nodes.start_worker(
            [NODE, "worker", nodes.address], "127.0.0.2", env, "--num-cpus=1", '--resources={"rollout": 1}',
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
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def job(nodes: RayNodes, shared: Path, models_dir: Path, device: str) -> Finished:
    """Submit the smoke preset with shorter texts, learners and engine each bound to a node."""
    return nodes.submit(
        "run=smoke_cpu", f"run.dir={shared}/runs", f"model.path={models_dir}/tiny-random",
        f"rewards.writing.path={models_dir}/tiny-classifier", "steps=2", "eval.num_prompts=2", "sampling.max_tokens=16",
        "learners.resources={learner: 1}", "actors.resources={rollout: 1}", *on_device(device),
    )  # fmt: skip


def test_the_run_is_whole(job: Finished, shared: Path):
    assert job.returncode == 0, job.output[-4000:]
    summary = read_json(shared / "runs" / "smoke_cpu" / "summary.json")
    assert (summary["status"], summary["steps"], summary["policy_version"]) == ("completed", 2, 2)
    assert_balanced(summary["groups"])


def test_learners_and_engines_lie_on_different_nodes(job: Finished, shared: Path):
    rows = read_json(shared / "runs" / "smoke_cpu" / "placement.json")["bundles"]
    addresses = {row["room"]: row["address"] for row in rows}
    assert addresses["actors"] == "127.0.0.2" != addresses["learners"]
    nodes = {room: {row["node_id"] for row in rows if row["room"] == room} for room in ("learners", "actors")}
    assert len(nodes["learners"]) == len(nodes["actors"]) == 1
    assert nodes["learners"] != nodes["actors"]
    assert {row["room"]: row["strategy"] for row in rows} == {
        "learners": "STRICT_PACK", "actors": "SPREAD", "rewards": "SPREAD",
    }  # fmt: skip
    assert "learners 2" in job.output.partition("placement\n")[2]


def test_weights_crossed_between_the_nodes(job: Finished, shared: Path):
    lines = read_lines(shared / "runs" / "smoke_cpu" / "metrics.jsonl")
    assert [line["policy_version"] for line in lines] == [1, 2]
    sizes = [line["weights/bytes"] for line in lines if "weights/bytes" in line]
    assert sizes
    assert min(sizes) > 6_000_000  # 3,244,352 parameters in 16 bits
    # Log-probabilities of the engine's own tokens, by the learner: the same weights on both sides.
    probe = read_json(shared / "runs" / "smoke_cpu" / "summary.json")["probe"]
    assert (len(probe["engines"]), probe["off"]) == (1, [])


def test_the_token_is_written_nowhere(nodes: RayNodes, job: Finished, shared: Path):
    assert len(nodes.token) >= 32
    assert nodes.token_file.stat().st_mode & 0o077 == 0
    assert nodes.token not in job.output + "".join(child.output for child in nodes.children)
    assert holders_of(nodes.token, shared) == []
    assert holders_of(nodes.token, nodes.folder / "ray") == []
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if nodes.token in line] == []


def test_a_node_without_the_token_does_not_join(nodes: RayNodes):
    command = [NODE, "worker", nodes.address, "--node-ip-address=127.0.0.3"]
    env = stranger(nodes)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"node.sh: no token: copy the head's {env['HOME']}/.ray/auth_token here")
    wrong = nodes.ray("job", "list", env=nodes.env | {"RAY_AUTH_TOKEN": "0" * 64})
    assert wrong.returncode != 0
    assert "token" in (wrong.stdout + wrong.stderr).lower()
