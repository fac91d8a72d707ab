"""More than the cluster has is refused at once, with the numbers, before anything is started."""

from pathlib import Path

import pytest

from tests.integration.harness import read_json, run, run_words

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["actors.replicas=1000"],
            "error: the run needs 801 CPUs (actors 800, rewards 0.2, learners 0.8), the cluster has 2: lower replicas, "
            "ranks or num_cpus, or add nodes",
        ),
        (
            ["actors.num_gpus=1000"],
            "error: the run needs 1000 GPUs (actors 1000, rewards 0, learners 0), the cluster has 0: lower replicas, "
            "ranks or num_gpus, or add nodes",
        ),
    ],
)
def test_too_much_is_refused_within_a_minute(
    words: list[str], line: str, models_dir: Path, tmp_path: Path, device: str
):
    if device == "cuda":
        line = line.replace("has 0:", "has 1:")
    done = run(
        run_words(models_dir, tmp_path, "big", "cluster.num_cpus=2", "tracking.progress=false", *words),
        tmp_path / "output.txt",
        timeout_s=60,
    )
    assert done.returncode == 2
    assert done.lines("error: ") == [line]
    assert "Traceback" not in done.output
    summary = read_json(tmp_path / "big" / "summary.json")
    assert (summary["status"], summary["steps"]) == ("failed", 0)
    assert summary["error"] == line.removeprefix("error: ")
    (started,) = done.lines("starting engines and learners (Ray's logs: ")
    logs = Path(started.partition("Ray's logs: ")[2].rstrip(")"))
    assert not [p for p in logs.glob("worker-*") if b"RolloutActor" in p.read_bytes()]
