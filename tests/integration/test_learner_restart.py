"""One run that loses a learner rank, then its driver, and comes to its end; a second driver is refused meanwhile."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.harness import (
    Child,
    Finished,
    assert_balanced,
    complete_checkpoints,
    on_device,
    read_json,
    read_lines,
    run,
    run_words,
    start,
    succeed,
)

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 12
WORDS = (
    f"steps={STEPS}",
    "run.resume=auto",
    "run.checkpoint_every_steps=2",
    "run.keep_checkpoints=10",
    "max_staleness=1",
    "rewards.writing.path=null",
    "failures.heartbeat_every_s=1",
    "eval.num_prompts=2",
    "tracking.progress=false",
)


@dataclass(frozen=True)
class Story:
    """What was seen from outside."""

    folder: Path
    ranks: list[int]
    """The processes of the first group's ranks; the last one was killed."""
    refused: Finished
    driver: int
    first: str
    """What the first driver said until it was killed."""
    last: Finished


def steps_of(folder: Path, attempt: int) -> list[int]:
    return [r["step"] for r in read_lines(folder / "metrics.jsonl") if r["attempt"] == attempt]


def has_more_than_a_checkpoint(folder: Path) -> bool:
    """Tell whether the first attempt has logged a step beyond a complete checkpoint."""
    saved = complete_checkpoints(folder)
    return bool(saved) and max(steps_of(folder, 1)) > saved[-1]


def learners_of(driver: Child) -> list[psutil.Process]:
    """Return the processes of the learner ranks of a run with a local cluster, by the name that Ray gives them."""
    below = psutil.Process(driver.process.pid).children(recursive=True)
    return [p for p in below if p.is_running() and any("ray::LearnerActor" in word for word in p.cmdline()[:1])]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, device: str) -> Story:
    """Refuse a second driver, kill a rank after a checkpoint, kill the driver in the next attempt, and go on."""
    place = tmp_path_factory.mktemp("restart")
    folder = place / "run"
    words = run_words(models_dir, place, "run", *WORDS, *on_device(device))
    first = start(words, place / "first.txt")
    first.wait_until(lambda: (folder / "manifest.json").exists(), 60, "the run folder")
    refused = run(words, place / "second.txt", timeout_s=60)
    first.wait_until(lambda: has_more_than_a_checkpoint(folder), 150, "a step after a checkpoint")
    ranks = learners_of(first)
    ranks[-1].kill()
    first.wait_until(lambda: len(steps_of(folder, 2)) > 0, 150, "a step of the second attempt")
    first.send(signal.SIGKILL)
    first.finish(30)
    last = succeed(words, place / "third.txt")
    return Story(folder, [p.pid for p in ranks], refused, first.process.pid, first.output, last)


def test_a_second_driver_is_refused(story: Story):
    assert story.refused.returncode == 2
    (line,) = story.refused.lines("error: ")
    assert line.startswith(f"error: {story.folder} is in use by process {story.driver} on ")
    assert "run.lease_timeout_s=60 seconds" in line


def test_the_learners_came_back_as_another_attempt(story: Story):
    (lost,) = [line for line in story.first.splitlines() if "starting the learners again" in line]
    manifest = read_json(story.folder / "manifest.json")
    first, second = manifest["earlier_attempts"]
    assert (first["attempt"], second["attempt"], manifest["attempt"]) == (1, 2, 3)
    assert re.fullmatch(r"learner rank [01] was lost: The actor is dead because .* End of file\.", second["reason"])
    assert lost == f"{second['reason']}; starting the learners again, from step_{second['resumed_from_step']:06d}"
    assert second["resumed_from_step"] >= 2
    assert "reason" not in first and "reason" not in manifest  # those began with a driver
    (warning,) = [r for r in read_lines(story.folder / "warnings.jsonl") if r["source"] == "learner_restart"]
    assert (warning["attempt"], warning["message"]) == (1, second["reason"])
    assert not any(psutil.pid_exists(pid) for pid in story.ranks)


def test_the_lost_history_is_marked_and_counted(story: Story):
    rows = read_lines(story.folder / "metrics.jsonl")
    assert [r["step"] for r in rows if not r.get("superseded")] == list(range(1, STEPS + 1))
    manifest = read_json(story.folder / "manifest.json")
    _, second = manifest["earlier_attempts"]
    for attempt, entry in ((1, second), (2, manifest)):
        lost = [r["step"] for r in rows if r.get("superseded") and r["attempt"] == attempt]
        assert lost == list(range(entry["resumed_from_step"] + 1, max(steps_of(story.folder, attempt)) + 1))
        # A step whose metrics were not written any more is lost too.
        assert entry["lost_steps"] in (len(lost), len(lost) + 1)
    samples = [r for r in read_lines(story.folder / "samples.jsonl") if not r.get("superseded")]
    trained = [(r["group_id"], r["sample_index"]) for r in samples if r["split"] == "train"]
    assert len(trained) == len(set(trained)) == 8 * STEPS
    assert [r["split"] for r in samples].count("eval_before") == 2


def test_the_account_of_the_whole_run(story: Story):
    summary: dict[str, Any] = read_json(story.folder / "summary.json")
    assert (summary["status"], summary["steps"], summary["attempt"]) == ("completed", STEPS, 3)
    assert_balanced(summary["groups"])
    assert summary["groups"]["trained"] == 2 * STEPS
    assert summary["policy_version"] == STEPS - summary["skipped_steps"]
    manifest = read_json(story.folder / "manifest.json")
    assert summary["lost_steps"] == manifest["lost_steps"] + manifest["earlier_attempts"][1]["lost_steps"]
    assert summary["restarts"] == 1
    assert summary["failures"] == {"infrastructure": {}, "data": {}, "bug": {}}  # of the last job
    assert summary["probe"]["off"] == []
    assert len(summary["probe"]["engines"]) == 1


def test_after_a_kill_the_same_command_goes_on_at_once(story: Story):
    assert "waiting up to" not in story.last.output
    assert read_json(story.folder / "manifest.json")["resumed_from_step"] in complete_checkpoints(story.folder)
