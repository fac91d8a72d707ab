"""`stage=scale` from another process while a run trains: the pool grows and shrinks, and every score arrives."""

import signal
from pathlib import Path

import pytest

from tests.integration.harness import (
    Child,
    assert_balanced,
    on_device,
    read_json,
    read_lines,
    run,
    run_words,
    start,
    succeed,
)

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]


def replicas(folder: Path) -> list[float]:
    """Return how many replicas each step so far was scored by."""
    return [line["pool/replicas"] for line in read_lines(folder / "metrics.jsonl")]


def reach(child: Child, folder: Path, number: float) -> None:
    child.wait_until(lambda: replicas(folder)[-1:] == [number], 90, f"a step with {number:g} reward replicas")


def test_a_run_is_given_more_and_fewer_reward_replicas(models_dir: Path, tmp_path: Path, device: str) -> None:
    words = run_words(models_dir, tmp_path / "runs", "scaled", "steps=1000", *on_device(device))
    folder = tmp_path / "runs" / "scaled"
    here = ["stage=scale", f"run.dir={tmp_path / 'runs'}", "run.name=scaled"]
    child = start(words, tmp_path / "run.txt")
    try:
        reach(child, folder, 2.0)
        grown = succeed([*here, "rewards.replicas=3"], tmp_path / "grow.txt", 120)
        assert "rewards.replicas: 2 -> 3" in grown.output
        reach(child, folder, 3.0)
        shrunk = succeed([*here, "rewards.replicas=1"], tmp_path / "shrink.txt", 120)
        assert "rewards.replicas: 3 -> 1" in shrunk.output
        reach(child, folder, 1.0)
        child.send(signal.SIGTERM)
        assert child.finish(90).returncode == 130
    finally:
        child.kill()
    summary = read_json(folder / "summary.json")
    assert_balanced(summary["groups"])
    assert summary["groups"]["dropped"] == {}
    lines = read_lines(folder / "metrics.jsonl")
    assert sum(line["rewards/failures"] for line in lines) == 0
    samples = [line for line in read_lines(folder / "samples.jsonl") if line["split"] == "train"]
    assert len(samples) == 8 * len(lines) and all(isinstance(s["rewards"]["writing"], float) for s in samples)
    late = run([*here, "rewards.replicas=2"], tmp_path / "late.txt", 60)
    assert late.returncode == 2 and late.output.count("\n") == 1 and "scaled" in late.output
