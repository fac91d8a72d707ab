"""One run ended by SIGTERM, continued, bereft of a learner rank, killed outright, and continued to its end.

Beside it runs one that nothing disturbs. Both are synchronous (max_staleness=0) and in float32, so that a step's texts
depend on seeds and weights alone.
"""

import itertools
import json
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from benchmarks.run_processes import is_agent
from tests.integration.harness import (
    Finished,
    assert_balanced,
    complete_checkpoints,
    learners_of,
    on_device,
    read_json,
    read_lines,
    run,
    run_words,
    staged_leftovers,
    start,
    steps_of,
    succeed,
)

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 10
WORDS = (
    f"steps={STEPS}",
    "max_staleness=0",
    "run.checkpoint_every_steps=2",
    "run.keep_checkpoints=10",
    "actors.dtype=float32",
    "learners.dtype=float32",
    # The second minibatch's loss depends on the first one's update; at equal weights a loss is 0 by construction.
    "algorithm.minibatches=2",
    # The engine's logprobs vary in their last bits with what else it decodes; the loss is not to depend on them.
    "algorithm.correction=none",
    "optimizer.lr=0.01",
    "rewards.writing.path=null",
    "eval.num_prompts=2",
    "failures.heartbeat_every_s=1",
    "tracking.progress=false",
)
SAME = ("rollout/mean_words", "rewards/length", "rewards/total", "train/tokens", "groups/admitted", "groups/trained")
CLOSE = ("train/loss", "train/grad_norm", "train/mismatch")
RELATIVE = 1e-5
"""Of CLOSE: seen bit-equal; the room is for float32 sums in another order on another machine."""


@dataclass(frozen=True)
class Story:
    """What was seen of three drivers: ended by SIGTERM, killed after it had lost a learner rank, and the last one."""

    folder: Path
    refused: Finished
    """A driver that came while the first one ran."""
    first_driver: int
    interrupted: Finished
    first_summary: dict[str, Any]
    first_checkpoints: list[int]
    ranks: list[int]
    """The processes of the second attempt's ranks; the last one was killed."""
    checkpoints_at_kill: list[int]
    second: Finished
    orphans: list[int]
    third: Finished
    left_at_end: set[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def undisturbed(place: Path, models_dir: Path, device: str) -> Path:
    """Run all steps at once; return the run folder."""
    words = run_words(models_dir, place, "undisturbed", *WORDS, *on_device(device))
    succeed(words, place / "undisturbed.txt")
    return place / "undisturbed"


@pytest.fixture(scope="module")
def story(place: Path, models_dir: Path, device: str) -> Story:
    """Run four attempts in one folder: the third by the driver of the second, when its learners were started again."""
    folder, staged = place / "disturbed", staged_leftovers()
    words = run_words(models_dir, place, "disturbed", *WORDS, "run.resume=auto", *on_device(device))
    first = start(words, place / "first.txt")
    first.wait_until(lambda: (folder / "manifest.json").exists(), 60, "the run folder")
    refused = run(words, place / "refused.txt", timeout_s=60)
    first.wait_until(lambda: 1 in steps_of(folder, 1), 150, "step 1")
    first.send(signal.SIGTERM)
    interrupted = first.finish(60)
    summary, checkpoints = read_json(folder / "summary.json"), complete_checkpoints(folder)

    second = start(words, place / "second.txt")
    second.wait_until(lambda: checkpoint_and_one_more(folder, 2, checkpoints[-1]), 150, "a step after a new checkpoint")
    ranks = learners_of(second)
    ranks[-1].kill()
    second.wait_until(lambda: bool(steps_of(folder, 3)), 150, "a step of the learners that were started again")
    back = read_json(folder / "manifest.json")["resumed_from_step"]
    second.wait_until(lambda: checkpoint_and_one_more(folder, 3, back), 150, "a step after another checkpoint")
    descendants = [p for p in psutil.Process(second.process.pid).children(recursive=True) if not is_agent(p)]
    second.send(signal.SIGKILL)
    killed = second.finish(30)
    _, orphans = psutil.wait_procs(descendants, timeout=60)
    at_kill = complete_checkpoints(folder)
    third = succeed(words, place / "third.txt")
    return Story(
        folder, refused, first.process.pid, interrupted, summary, checkpoints, [p.pid for p in ranks], at_kill, killed,
        [p.pid for p in orphans], third, staged_leftovers() - staged,
    )  # fmt: skip


def checkpoint_and_one_more(folder: Path, attempt: int, reached: int) -> bool:
    """Tell whether an attempt has logged a step beyond a checkpoint of its own; reached: the step where it began."""
    saved = [s for s in complete_checkpoints(folder) if s > reached]
    return bool(saved) and max(steps_of(folder, attempt), default=0) > saved[-1]


def test_a_second_driver_is_refused(story: Story):
    assert story.refused.returncode == 2
    (line,) = story.refused.lines("error: ")
    assert line.startswith(f"error: {story.folder} is in use by process {story.first_driver} on ")
    assert "run.lease_timeout_s=60 seconds" in line


def test_sigterm_ends_with_a_usable_checkpoint(story: Story):
    assert story.interrupted.returncode == 130
    assert len(story.interrupted.lines("SIGTERM: ending after the present step")) == 1
    summary = story.first_summary
    assert (summary["status"], summary["error"]) == ("interrupted", None)
    assert 1 <= summary["steps"] <= 3
    assert story.first_checkpoints[-1] == summary["steps"] == summary["policy_version"]
    assert_balanced(summary["groups"])
    assert summary["groups"]["trained"] == 2 * summary["steps"]
    assert (story.folder / "summary.attempt-1.json").exists()


def test_learners_that_lost_a_rank_come_back_as_another_attempt(story: Story):
    (lost,) = [line for line in story.second.output.splitlines() if "starting the learners again" in line]
    manifest = read_json(story.folder / "manifest.json")
    first, second, third = manifest["earlier_attempts"]
    assert (first["attempt"], second["attempt"], third["attempt"], manifest["attempt"]) == (1, 2, 3, 4)
    assert re.fullmatch(r"learner rank [01] was lost: The actor is dead because .* End of file\.", third["reason"])
    assert lost == f"{third['reason']}; starting the learners again, from step_{third['resumed_from_step']:06d}"
    assert second["resumed_from_step"] == story.first_checkpoints[-1] < third["resumed_from_step"]
    assert not any("reason" in entry for entry in (first, second, manifest))  # those began with a driver
    (warning,) = [r for r in read_lines(story.folder / "warnings.jsonl") if r["source"] == "learner_restart"]
    assert (warning["attempt"], warning["message"]) == (2, third["reason"])
    assert not any(psutil.pid_exists(pid) for pid in story.ranks)


def test_a_killed_run_continues_at_once_to_its_end(story: Story):
    assert "waiting up to" not in story.third.output
    summary = read_json(story.folder / "summary.json")
    assert (summary["status"], summary["steps"], summary["attempt"]) == ("completed", STEPS, 4)
    assert summary["policy_version"] == STEPS
    assert summary["groups"] == {"admitted": 2 * STEPS, "trained": 2 * STEPS, "dropped": {}, "in_flight": 0}
    assert summary["failures"] == {"infrastructure": {}, "data": {}, "bug": {}}  # of the last job
    assert (len(summary["probe"]["engines"]), summary["probe"]["off"]) == (1, [])
    manifest = read_json(story.folder / "manifest.json")
    assert manifest["resumed_from_step"] == story.checkpoints_at_kill[-1]
    assert (summary["restarts"], summary["lost_steps"]) == (
        1, manifest["lost_steps"] + manifest["earlier_attempts"][2]["lost_steps"],
    )  # fmt: skip
    assert (story.folder / "export" / "model.safetensors").exists()


def test_lines_of_the_lost_history_are_marked_and_counted(story: Story):
    rows = read_lines(story.folder / "metrics.jsonl")
    assert [r["step"] for r in rows if not r.get("superseded")] == list(range(1, STEPS + 1))
    manifest = read_json(story.folder / "manifest.json")
    for attempt, after in ((2, manifest["earlier_attempts"][2]), (3, manifest)):
        lost = [r["step"] for r in rows if r.get("superseded") and r["attempt"] == attempt]
        assert lost == list(range(after["resumed_from_step"] + 1, max(steps_of(story.folder, attempt)) + 1))
        assert lost
        # A step whose metrics were not written any more is lost too.
        assert after["lost_steps"] in (len(lost), len(lost) + 1)
    assert {r["attempt"] for r in rows if r.get("superseded")} == {2, 3}
    samples = [r for r in read_lines(story.folder / "samples.jsonl") if not r.get("superseded")]
    once = [(r["group_id"], r["sample_index"]) for r in samples if r["split"] == "train"]
    assert sorted(once) == [(g, i) for g in range(2 * STEPS) for i in range(4)]
    assert [r["split"] for r in samples].count("eval_before") == 2


def test_every_step_is_what_it_would_have_been(story: Story, undisturbed: Path):
    """The next step's loss after each return, and every other step, equal those of the run that nothing disturbed."""
    expected = {r["step"]: r for r in read_lines(undisturbed / "metrics.jsonl")}
    found = {r["step"]: r for r in read_lines(story.folder / "metrics.jsonl") if not r.get("superseded")}
    assert {r["attempt"] for r in found.values()} == {1, 2, 3, 4}
    for step in range(1, STEPS + 1):
        assert {k: found[step][k] for k in SAME} == {k: expected[step][k] for k in SAME}, step
        assert texts_of(story.folder, step) == texts_of(undisturbed, step), step
        for key in CLOSE:
            assert found[step][key] == pytest.approx(expected[step][key], rel=RELATIVE, abs=1e-7), (step, key)
    # The comparison can fail: consecutive steps differ by far more than the tolerance.
    losses = [expected[s]["train/loss"] for s in expected]
    assert all(abs(a - b) > 10 * RELATIVE * abs(a) for a, b in itertools.pairwise(losses))


def test_the_end_is_the_same_bit_by_bit(story: Story, undisturbed: Path, tmp_path: Path):
    """Exported weights, and the float32 weights and moments of the last checkpoint."""
    exported, expected = (load_file(f / "export" / "model.safetensors") for f in (story.folder, undisturbed))
    assert set(exported) == set(expected)
    assert [name for name, tensor in expected.items() if not torch.equal(exported[name], tensor)] == []
    found, wanted = (last_state(f, tmp_path / f.name) for f in (story.folder, undisturbed))
    assert set(found) == set(wanted) and len([name for name in wanted if name.endswith("exp_avg_sq")]) == len(expected)
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


def last_state(folder: Path, file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the last step's checkpoint under dotted names."""
    dcp_to_torch_save(folder / "checkpoints" / f"step_{STEPS:06d}" / "shards", file)
    found = torch.load(file)
    moments = {f"{name}.{k}": v for name, state in found["optimizer"].items() for k, v in state.items()}
    return found["model"] | moments


def texts_of(folder: Path, step: int) -> list[tuple[int, int, str]]:
    rows = [r for r in read_lines(folder / "samples.jsonl") if r["step"] == step and r["split"] == "train"]
    return sorted((r["group_id"], r["sample_index"], r["completion"]) for r in rows if not r.get("superseded"))


def test_a_kill_leaves_no_process_and_in_the_end_no_staged_weights(story: Story):
    """What a killed learner had staged is swept by the next one on this host."""
    assert story.orphans == []
    assert story.left_at_end == set()


def test_a_checkpoint_of_another_model_is_refused(story: Story, models_dir: Path, place: Path, device: str):
    shutil.copytree(story.folder, place / "other")
    newest = sorted((place / "other" / "checkpoints").glob("step_*"))[-1]
    identity = json.loads((newest / "model.json").read_text())
    assert identity["hidden_size"] == 64
    (newest / "model.json").write_text(json.dumps({**identity, "hidden_size": 128}))
    words = run_words(models_dir, place, "other", *WORDS, "run.resume=auto", *on_device(device))
    done = run(words, place / "other.txt", timeout_s=60)
    assert done.returncode == 2
    assert done.output.splitlines() == [
        f"error: run.resume=auto: {newest} was written by another model (hidden_size 128 there, 64 here); "
        "set model.path to that model or choose another run.name"
    ]
    assert len(read_json(place / "other" / "manifest.json")["earlier_attempts"]) == 3
