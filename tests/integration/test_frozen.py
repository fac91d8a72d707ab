"""One run in which each kind of process is stopped (SIGSTOP) in turn: it says what it waits for, and goes on."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_audit import SOURCE_OF, Evidence, balanced, every_step_once, no_group_twice, versions_follow_steps
from benchmarks.run_processes import Kind, RunProcesses, is_alive
from tests.integration.harness import (
    Child,
    Finished,
    on_device,
    read_json,
    read_lines,
    run,
    run_words,
    start,
    steps_of,
)

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
LIMIT_S = 8
WORDS = (
    "steps=1000",  # it is stopped when it has recovered
    "run.checkpoint_every_steps=5",
    "actors.replicas=2",
    "actors.num_cpus=0.4",
    "eval.num_prompts=2",
    "failures.heartbeat_every_s=1",
    f"failures.heartbeat_timeout_s={LIMIT_S}",
    "tracking.progress=false",
)
SILENT = f"no sign of life for {LIMIT_S} s (failures.heartbeat_timeout_s)"
ORDER: tuple[tuple[Kind, ...], ...] = (("engine", "reward"), ("rollout",))
"""Of different rooms at once. The learner's turn comes last: the run goes back to a checkpoint for it."""


@dataclass
class Story:
    """What the run said while it was disturbed, and what it left."""

    folder: Path
    said: dict[Kind, dict[str, Any]] = field(default_factory=dict)
    """The first warning of a loss after a process of this kind was stopped."""
    gone: dict[Kind, bool] = field(default_factory=dict)
    """Whether the stopped process had ended by the end of the run."""
    asked: Finished | None = None
    """`stage=scale` while the driver was stopped."""
    done: Finished | None = None


def losses(folder: Path, kind: Kind) -> list[dict[str, Any]]:
    return [row for row in read_lines(folder / "warnings.jsonl") if row["source"] == SOURCE_OF[kind]]


def steps(folder: Path) -> int:
    return len(read_lines(folder / "metrics.jsonl"))


class Disturber:
    """Stops processes of a run and waits for what the run says of it."""

    def __init__(self, child: Child, folder: Path) -> None:
        self.child, self.story = child, Story(folder)
        self._run, self._stopped = RunProcesses(child.process.pid), {}
        self._folder = folder

    def stop(self, *kinds: Kind) -> None:
        """Stop one process of each kind, in rooms of their own, and wait until the run says that it misses them.

        The oldest: one that is only starting is waited for by `start_timeout_s`.
        """
        before = {kind: len(losses(self._folder, kind)) for kind in kinds}
        for kind in kinds:
            self._stopped[kind] = self._run.wait_for(kind, 1, 60)[0]
            self._stopped[kind].suspend()
        for kind in kinds:
            self.child.wait_until(
                lambda kind=kind: len(losses(self._folder, kind)) > before[kind],
                LIMIT_S + 40,
                f"a word on the stopped {kind}",
            )
            self.story.said[kind] = losses(self._folder, kind)[before[kind]]

    def go_on(self, more: int, timeout_s: float) -> None:
        """Wait for more steps."""
        seen = steps(self._folder)
        self.child.wait_until(lambda: steps(self._folder) >= seen + more, timeout_s, f"{more} more steps")

    def stop_driver(self, ask: list[str], log: Path) -> None:
        """Stop the driver alone, ask the run for something, and let the driver go on."""
        self.child.send(signal.SIGSTOP)
        try:
            self.story.asked = run(ask, log, timeout_s=90)
        finally:
            self.child.send(signal.SIGCONT)

    def end(self) -> Story:
        """Ask the run to end."""
        self.child.send(signal.SIGTERM)
        self.story.done = self.child.finish(90)
        self.story.gone = {kind: not is_alive(process) for kind, process in self._stopped.items()}
        return self.story

    def close(self) -> None:
        """Leave nothing behind; a stopped process can be killed too."""
        self._run.kill_all()
        self.child.kill()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, device: str) -> Iterator[Story]:
    place = tmp_path_factory.mktemp("frozen")
    folder = place / "stopped"
    child = start(run_words(models_dir, place, "stopped", *WORDS, *on_device(device, replicas=2)), place / "run.txt")
    disturber = Disturber(child, folder)
    try:
        child.wait_until(lambda: steps(folder) > 1, 150, "the first steps")
        for kinds in ORDER:
            disturber.stop(*kinds)
        ask = ["stage=scale", f"run.dir={place}", "run.name=stopped", "rewards.replicas=1"]
        disturber.stop_driver(ask, place / "scale.txt")
        disturber.go_on(1, 120)
        disturber.stop("learner")
        child.wait_until(lambda: len(steps_of(folder, 2)) > 1, 150, "steps of the learners that were started again")
        yield disturber.end()
    finally:
        disturber.close()


@pytest.mark.parametrize(
    ("kind", "what"),
    [("engine", "rollout actor"), ("reward", "reward"), ("rollout", "rollout actor"), ("learner", "learner rank")],
)
def test_the_run_says_whom_it_missed_and_for_how_long(story: Story, kind: Kind, what: str) -> None:
    message = story.said[kind]["message"]
    assert what in message and SILENT in message, message


def test_a_stopped_process_is_killed(story: Story) -> None:
    assert story.gone == {"engine": True, "reward": True, "rollout": True, "learner": True}


def test_a_stopped_driver_is_reported_by_whoever_asks_it(story: Story) -> None:
    assert story.asked is not None and story.asked.returncode != 0
    (line,) = story.asked.lines("error: ")
    assert "no run goes on" in line and "sign of life" in line and str(story.folder) in line, line


def test_the_run_recovers_and_ends_in_order(story: Story) -> None:
    assert story.done is not None and story.done.returncode == 130, story.done
    found = Evidence.read(story.folder)
    assert (found.summary["status"], found.summary["error"]) == ("interrupted", None)
    assert found.summary["steps"] > found.manifest["resumed_from_step"]
    violations = [check(found) for check in (balanced, every_step_once, no_group_twice, versions_follow_steps)]
    assert violations == [[]] * 4
    # Asked when the learners were back; a replacement of the engines may still have been starting.
    assert found.summary["probe"]["off"] == [] and len(found.summary["probe"]["engines"]) in (1, 2)
    assert found.summary["restarts"] >= 1
    failures = read_json(story.folder / "summary.json")["failures"]["infrastructure"]
    assert failures["rollout_lost"] >= 2 and failures["reward_lost"] >= 1 and failures["learner_restart"] >= 1
