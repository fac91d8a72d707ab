"""The checkpoint store over the in-process learner: order of the files, retention, background errors, full disks."""

import asyncio
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.checkpoints import MARKER, CheckpointStore
from learners.policy_objective import PolicyObjective
from lwz_ray.config import Config, RunConfig
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError
from tests.loop_parts import BigramModel, TableLearner, make_config


class HeldLearner(TableLearner):
    """Writes its file only when `release` is set; `fault` is raised then. Released from the start."""

    def __init__(self, config: Config) -> None:
        super().__init__(BigramModel(), PolicyObjective(config.algorithm, config.sampling.temperature), lr=0.1)
        self.release = asyncio.Event()
        self.release.set()
        self.fault: BaseException | None = None

    def fill(self, value: float) -> None:
        with torch.no_grad():
            self.table.fill_(value)

    async def finish_save(self) -> None:
        await self.release.wait()
        if self.fault is not None:
            raise self.fault
        await super().finish_save()


def store_of(folder: Path, timeout_s: float = 20.0, **run: Any) -> tuple[CheckpointStore, HeldLearner]:
    """Return a store in `folder`, and its learner; `run` changes the fields of the run's config."""
    config = make_config(folder, run=run)
    learner = HeldLearner(config)
    store = CheckpointStore(folder / "checkpoints", {"model": "bigram"}, config.run, timeout_s)
    store.attach(learner)
    return store, learner


async def save_all(store: CheckpointStore, measured: Mapping[int, Mapping[str, float]]) -> None:
    """Save a checkpoint of each step with what it measured, and wait for the last."""
    for step, metrics in measured.items():
        await store.save(step, {"progress": {"step": step}}, [], metrics)
    await store.wait()


def steps_in(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def test_the_newest_stay(tmp_path: Path):
    store, _ = store_of(tmp_path, keep_checkpoints=2)
    asyncio.run(save_all(store, {s: {} for s in (1, 2, 10, 9)}))
    assert steps_in(tmp_path) == ["step_000009", "step_000010"]
    assert store.newest() == tmp_path / "checkpoints" / "step_000010"
    assert json.loads((tmp_path / "checkpoints/step_000009" / MARKER).read_text()) == {"step": 9}


MEASURED = {
    1: {"rewards/total": 0.9},
    2: {"rewards/total": 0.1},
    3: {"rewards/total": 0.9, "train/loss": 3.0},
    4: {"train/loss": 9.0},
    5: {"rewards/total": float("nan")},
    6: {"rewards/total": 0.2},
}


@pytest.mark.parametrize(
    ("mode", "keep_best", "left"),
    [
        ("max", 1, [3, 6]),  # the newer of equals
        ("max", 2, [1, 3, 6]),
        ("min", 1, [2, 6]),
        ("min", 2, [2, 6]),  # the newest is the second best
        ("max", 9, [1, 2, 3, 6]),  # steps 4 and 5 have not measured it
        ("max", 0, [6]),
    ],
)
def test_the_best_stay_too(tmp_path: Path, mode: str, keep_best: int, left: list[int]):
    store, _ = store_of(tmp_path, keep_checkpoints=1, keep_best=keep_best, best_metric="rewards/total", best_mode=mode)
    asyncio.run(save_all(store, MEASURED))
    assert steps_in(tmp_path) == [f"step_{s:06d}" for s in left]
    newest = store.newest()
    assert newest is not None and newest.name == "step_000006"


def test_best_needs_a_metric():
    plain = {"name": "x", "dir": "runs", "resume": "never", "checkpoint_every_steps": 1, "checkpoint_async": True}
    plain |= {"keep_checkpoints": 1, "best_mode": "max", "lease_timeout_s": 60.0}
    with pytest.raises(ValueError, match=r"run.keep_best=2 but run.best_metric is null: name a key of metrics.jsonl"):
        RunConfig.model_validate({**plain, "keep_best": 2, "best_metric": None})
    assert RunConfig.model_validate({**plain, "keep_best": 0, "best_metric": None}).best_metric is None


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path):
    async def story() -> None:
        store, learner = store_of(tmp_path)
        learner.release.clear()
        await store.save(1, {"progress": {}}, [], {})
        (partial,) = steps_in(tmp_path)
        assert re.fullmatch(r"\.step_000001\.[0-9a-f]{8}\.partial", partial)
        assert store.newest() is None
        learner.fill(7.0)
        second = asyncio.create_task(store.save(2, {"progress": {}}, [], {}))
        await asyncio.sleep(0.05)
        assert steps_in(tmp_path) == [partial]  # one at a time: the second waits for the first
        learner.release.set()
        await second
        await store.wait()
        assert steps_in(tmp_path) == ["step_000001", "step_000002"]
        for step, value in ((1, 0.0), (2, 7.0)):
            await store.load(tmp_path / "checkpoints" / f"step_{step:06d}")
            assert learner.table.tolist() == [[value] * 8] * 8

    asyncio.run(story())


def test_without_async_a_save_is_complete(tmp_path: Path):
    store, _ = store_of(tmp_path, checkpoint_async=False)

    async def story() -> None:
        await store.save(3, {"progress": {}}, [], {})
        assert steps_in(tmp_path) == ["step_000003"] and store.newest() is not None

    asyncio.run(story())


def test_a_background_error_comes_out_at_the_next_call(tmp_path: Path):
    async def story() -> None:
        store, learner = store_of(tmp_path)
        await save_all(store, {1: {}})
        learner.fault = RuntimeError("the cable was cut")
        await store.save(2, {"progress": {}}, [], {})
        with pytest.raises(InfrastructureError) as caught:
            await store.save(3, {"progress": {}}, [], {})
        assert str(caught.value) == (
            f"the checkpoint of step 2 in {tmp_path}/checkpoints was not written; step_000001 remains usable: "
            "RuntimeError: the cable was cut"
        )
        assert steps_in(tmp_path) == ["step_000001"]
        learner.fault = None
        await save_all(store, {4: {}})
        assert steps_in(tmp_path) == ["step_000001", "step_000004"]

    asyncio.run(story())


def test_a_run_that_fails_elsewhere_hears_of_it_too(tmp_path: Path):
    async def story() -> None:
        store, learner = store_of(tmp_path)
        learner.fault = RuntimeError("the cable was cut")
        await store.save(1, {"progress": {}}, [], {})
        said = await store.end()
        assert said is not None and said.endswith("there is no earlier one: RuntimeError: the cable was cut")
        assert await store.end() is None

    asyncio.run(story())


def test_a_writer_that_never_ends_is_named(tmp_path: Path):
    async def story() -> None:
        store, learner = store_of(tmp_path, timeout_s=0.05)
        learner.release.clear()
        await store.save(5, {"progress": {}}, [], {})
        with pytest.raises(WaitTimeoutError, match=r"waited 0.05 s for the checkpoint of step 5 in "):
            await store.wait()

    asyncio.run(story())


def test_what_a_kill_left_is_cleared_and_never_loaded(tmp_path: Path):
    place = tmp_path / "checkpoints"
    for name in ("step_000004", "step_000006", ".step_000008.partial"):
        (place / name).mkdir(parents=True)
        (place / name / "loop.json").write_text("{")
    store, _ = store_of(tmp_path)
    assert store.newest() is None
    asyncio.run(save_all(store, {6: {}}))
    assert steps_in(tmp_path) == ["step_000006"]
    assert (place / "step_000006" / "model.json").read_text() == '{"model": "bigram"}'


def test_a_critic_has_a_folder_of_its_own(tmp_path: Path):
    async def story() -> None:
        store, learner = store_of(tmp_path)
        await save_all(store, {1: {}})
        critic = HeldLearner(make_config(tmp_path))
        critic.fill(3.0)
        store.attach(learner, critic)
        with pytest.raises(UserError, match=r"step_000001 holds no critic: it was written by a run without one"):
            await store.load(tmp_path / "checkpoints/step_000001")
        await save_all(store, {2: {}})
        critic.fill(0.0)
        learner.fill(1.0)
        await store.load(tmp_path / "checkpoints/step_000002")
        assert (learner.table.sum().item(), critic.table.sum().item()) == (0.0, 3.0 * 64)

    asyncio.run(story())


def test_a_full_disk_is_an_error_message_and_no_lost_checkpoint(tmp_path: Path):
    """/dev/full answers every write as a full disk does."""

    async def story() -> None:
        store, learner = store_of(tmp_path)
        await save_all(store, {1: {}})
        await store.save(2, {"progress": {}}, [], {})
        (aside,) = (tmp_path / "checkpoints").glob(".step_000002.*.partial")
        os.symlink("/dev/full", aside / "loop.json")
        with pytest.raises(UserError) as caught:
            await store.wait()
        text = str(caught.value)
        assert text.startswith(f"the checkpoint of step 2 does not fit in {tmp_path}/checkpoints: ")
        assert " are free; step_000001 remains usable. Make room, or lower run.keep_checkpoints=50" in text
        assert "No space left on device" in text
        assert steps_in(tmp_path) == ["step_000001"]
        learner.fill(5.0)
        await store.load(tmp_path / "checkpoints/step_000001")
        assert learner.table.sum().item() == 0.0

    asyncio.run(story())


LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from tests.unit.launch.test_checkpoints import save_all, store_of

store, _ = store_of(Path(sys.argv[1]))
asyncio.run(save_all(store, {1: {}}))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))  # no file may grow beyond
try:
    asyncio.run(save_all(store, {2: {f"rewards/{i}": 0.5 for i in range(10_000)}}))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_file_that_is_cut_short_is_one_too(tmp_path: Path):
    """The limit on a file's size needs no privileges and cuts a write in its middle, as a disk that fills up does."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.stdout.startswith(f"UserError the checkpoint of step 2 does not fit in {tmp_path}/checkpoints: ")
    assert "File too large" in done.stdout
    assert steps_in(tmp_path) == ["step_000001"]
