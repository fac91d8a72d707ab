"""A node joins a run's Ray cluster, its engine writes alone for a while, and the node is killed: the run goes on."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.cli import main
from tests.integration.harness import (
    Child,
    assert_balanced,
    on_device,
    read_json,
    read_lines,
    run_words,
    start,
)

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that holds a smoke run with one engine, and nothing more."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 2, "object_store_memory": 300 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def rollout_actors(node: Any) -> list[psutil.Process]:
    """Return the processes of the rollout actors on a node of this machine; a title names what is called, too."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [p for p in raylet.children(recursive=True) if "".join(p.cmdline()[:1]).startswith("ray::RolloutActor")]


def after(child: Child, folder: Path, steps: int, engines: float, what: str) -> None:
    """Wait for `steps` more steps with so many engines."""
    begin = len(read_lines(folder / "metrics.jsonl"))

    def holds() -> bool:
        lines = read_lines(folder / "metrics.jsonl")[begin:]
        return sum(line["dispatch/engines"] == engines for line in lines) >= steps

    child.wait_until(holds, 120, what)


def test_a_node_is_added_used_and_killed(
    cluster: Any, models_dir: Path, tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, folder = "elastic", tmp_path / "runs" / "elastic"
    words = run_words(models_dir, tmp_path / "runs", name, "steps=1000", f"cluster.address={cluster.address}")
    words += ["failures.heartbeat_every_s=1", "failures.heartbeat_timeout_s=20", *on_device(device, 2)]
    child = start(words, tmp_path / "run.txt")
    try:
        after(child, folder, 1, 1.0, "a step on the head alone")
        (first,) = rollout_actors(cluster.head_node)
        node = cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
        here = ["stage=scale", f"run.dir={tmp_path / 'runs'}", f"run.name={name}", "actors.replicas=2"]
        assert main(here) == 0
        assert "actors.replicas: 1 -> 2" in capsys.readouterr().out.splitlines()
        assert len(rollout_actors(node)) == 1, "Ray put the new engine on the node that joined"
        after(child, folder, 1, 2.0, "a step with both engines")
        first.kill()
        after(child, folder, 2, 1.0, "steps that the new node's engine wrote alone")
        cluster.remove_node(node, allow_graceful=False)
        after(child, folder, 1, 1.0, "a step of the engine that replaced the first one")
        child.send(signal.SIGTERM)
        assert child.finish(90).returncode == 130, child.output[-2000:]
    finally:
        child.kill()
    summary = read_json(folder / "summary.json")
    assert_balanced(summary["groups"])
    assert summary["groups"]["dropped"] == {}
    assert summary["failures"]["infrastructure"]["rollout_lost"] >= 2
    losses = [line["message"] for line in read_lines(folder / "warnings.jsonl") if line["source"] == "rollout_lost"]
    assert any(message.startswith(f"rollout actor 2 on node {node.node_id[:8]} was lost") for message in losses)
