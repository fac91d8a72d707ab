"""`stage=scale` from another process while a run trains: engines and scorers come and go, and nothing is lost."""

import signal
from pathlib import Path

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
    succeed,
)

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]


def replicas(folder: Path) -> list[tuple[float, float]]:
    """Return how many engines and scorers took part in each step so far."""
    lines = read_lines(folder / "metrics.jsonl")
    return [(line["dispatch/engines"], line["pool/replicas"]) for line in lines]


def reach(child: Child, folder: Path, *numbers: float) -> None:
    what = f"a step with {numbers[0]:g} engines and {numbers[1]:g} scorers"
    child.wait_until(lambda: replicas(folder)[-1:] == [numbers], 120, what)


def test_a_run_is_given_more_and_fewer_replicas(
    models_dir: Path, tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = run_words(models_dir, tmp_path / "runs", "scaled", "steps=1000", *on_device(device, 2))
    # Ray CPUs: 2 * 0.4 + 3 * 0.1 + 2 * 0.4 = 1.9 of 2.
    words += ["actors.num_cpus=0.4", "actors.max_replicas=2", "actors.routing=round_robin"]
    folder = tmp_path / "runs" / "scaled"
    here = ["stage=scale", f"run.dir={tmp_path / 'runs'}", "run.name=scaled"]
    child = start(words, tmp_path / "run.txt")
    try:
        reach(child, folder, 1.0, 2.0)
        grown = succeed([*here, "actors.replicas=2", "rewards.replicas=3"], tmp_path / "grow.txt", 200)
        assert grown.lines("actors.") == ["actors.replicas: 1 -> 2"]
        assert grown.lines("rewards.") == ["rewards.replicas: 2 -> 3"]
        reach(child, folder, 2.0, 3.0)
        capsys.readouterr()
        assert main([*here, "actors.replicas=1", "rewards.replicas=1"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert {"actors.replicas: 2 -> 1", "rewards.replicas: 3 -> 1"} <= set(said)
        reach(child, folder, 1.0, 1.0)
        child.send(signal.SIGTERM)
        assert child.finish(90).returncode == 130
    finally:
        child.kill()
    summary = read_json(folder / "summary.json")
    assert_balanced(summary["groups"])
    assert summary["groups"]["dropped"] == {}
    assert summary["failures"] == {"infrastructure": {}, "data": {}, "bug": {}}
    lines = read_lines(folder / "metrics.jsonl")
    assert sum(line["rewards/failures"] for line in lines) == 0
    samples = [line for line in read_lines(folder / "samples.jsonl") if line["split"] == "train"]
    assert len(samples) == 8 * len(lines) and all(isinstance(s["rewards"]["writing"], float) for s in samples)
