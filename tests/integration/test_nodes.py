"""A run is given more and fewer engines and scorers while it trains; a node joins it, and is killed: it goes on."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.run_processes import TITLES, title_of
from launch.cli import main
from tests.integration.harness import (
    Child,
    assert_balanced,
    on_device,
    read_json,
    read_lines,
    run_words,
    start,
    succeed,
)

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that holds a smoke run with one engine and three scorers, and nothing more."""
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
    return [p for p in raylet.children(recursive=True) if title_of(p).startswith(TITLES["rollout"])]


def after(child: Child, folder: Path, steps: int, engines: float, scorers: float, what: str) -> None:
    """Wait for `steps` more steps in which so many engines and scorers took part."""
    begin = len(read_lines(folder / "metrics.jsonl"))

    def holds() -> bool:
        lines = read_lines(folder / "metrics.jsonl")[begin:]
        return sum((line["dispatch/engines"], line["pool/replicas"]) == (engines, scorers) for line in lines) >= steps

    child.wait_until(holds, 120, what)


def losses(folder: Path) -> list[str]:
    rows = read_lines(folder / "warnings.jsonl")
    return [row["message"] for row in rows if row["source"] in ("rollout_lost", "reward_lost")]


def test_replicas_come_and_go_and_a_node_is_added_used_and_killed(
    cluster: Any, models_dir: Path, tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, folder = "elastic", tmp_path / "runs" / "elastic"
    words = run_words(models_dir, tmp_path / "runs", name, "steps=1000", f"cluster.address={cluster.address}")
    words += ["failures.heartbeat_every_s=1", "failures.heartbeat_timeout_s=20", "actors.max_replicas=2"]
    words += ["actors.routing=round_robin", *on_device(device, 2)]
    here = ["stage=scale", f"run.dir={tmp_path / 'runs'}", f"run.name={name}"]
    child = start(words, tmp_path / "run.txt")
    try:
        after(child, folder, 1, 1.0, 2.0, "a step on the head alone")
        (first,) = rollout_actors(cluster.head_node)
        node = cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
        grown = succeed([*here, "actors.replicas=2", "rewards.replicas=3"], tmp_path / "grow.txt", 300)
        assert grown.lines("actors.") == ["actors.replicas: 1 -> 2"]
        assert grown.lines("rewards.") == ["rewards.replicas: 2 -> 3"]
        assert len(rollout_actors(node)) == 1, "Ray put the new engine on the node that joined"
        after(child, folder, 1, 2.0, 3.0, "a step with both engines and three scorers")
        capsys.readouterr()
        assert main([*here, "actors.replicas=1", "rewards.replicas=1"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert {"actors.replicas: 2 -> 1", "rewards.replicas: 3 -> 1"} <= set(said)
        assert rollout_actors(cluster.head_node) == [first], "the youngest leaves"
        after(child, folder, 1, 1.0, 1.0, "a step with one engine and one scorer")
        assert losses(folder) == [], "who is told to leave is not lost"

        assert main([*here, "actors.replicas=2"]) == 0
        after(child, folder, 1, 2.0, 1.0, "a step with both engines")
        first.kill()
        after(child, folder, 2, 1.0, 1.0, "steps that the new node's engine wrote alone")
        cluster.remove_node(node, allow_graceful=False)
        after(child, folder, 1, 1.0, 1.0, "a step of the engine that replaced the first one")
        child.send(signal.SIGTERM)
        assert child.finish(90).returncode == 130, child.output[-2000:]
    finally:
        child.kill()
        print(child.output[-4000:])  # what the run said, where the test fails
    summary = read_json(folder / "summary.json")
    assert_balanced(summary["groups"])
    assert summary["groups"]["dropped"] == {}
    failures = summary["failures"]
    assert (failures["data"], failures["bug"], set(failures["infrastructure"])) == ({}, {}, {"rollout_lost"})
    assert failures["infrastructure"]["rollout_lost"] >= 2
    assert any(m.startswith(f"rollout actor 3 on node {node.node_id[:8]} was lost") for m in losses(folder))
    lines = read_lines(folder / "metrics.jsonl")
    assert sum(line["rewards/failures"] for line in lines) == 0
    samples = [line for line in read_lines(folder / "samples.jsonl") if line["split"] == "train"]
    assert len(samples) == 8 * len(lines) and all(isinstance(s["rewards"]["writing"], float) for s in samples)
