"""`stage=scale` from a process that reaches the cluster and not the run folder, through the run's Ray actor."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from launch.compose import compose
from tests.integration.harness import Finished, run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200)]


async def test_a_run_is_scaled_through_its_cluster(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    from launch.control_actor import Control
    from lwz_ray.errors import UserError

    done: list[tuple[str, int]] = []

    async def rollouts(num: int) -> str:
        if num > 2:
            raise UserError("no room for so many")
        done.append(("actors", num))
        return f"actors.replicas: 1 -> {num}"

    async def rewards(num: int) -> str:
        done.append(("rewards", num))
        return f"rewards.replicas: 2 -> {num}"

    address = ray.get_runtime_context().gcs_address
    words = [f"run.dir={tmp_path}/not/seen", "run.name=far", f"cluster.address={address}"]
    actions: dict[str, Any] = {"actors.replicas": rollouts, "rewards.replicas": rewards}
    control = Control(compose(["run=smoke_cpu", *words]), tmp_path / "seen", actions, timeout_s=30)

    async def ask(log: str, *more: str) -> Finished:
        return await asyncio.to_thread(run, ["stage=scale", *words, *more], tmp_path / log, 100)

    await control.start()
    try:
        both = await ask("both.txt", "rewards.replicas=5", "actors.replicas=2")
        assert both.returncode == 0, both.output
        assert both.lines("actors.") + both.lines("rewards.") == ["actors.replicas: 1 -> 2", "rewards.replicas: 2 -> 5"]
        assert done == [("actors", 2), ("rewards", 5)]
        refused = await ask("refused.txt", "actors.replicas=3")
        assert (refused.returncode, refused.lines("error: ")) == (2, ["error: no room for so many"])
    finally:
        await control.stop()
    late = await ask("late.txt", "actors.replicas=2")
    assert late.returncode == 2
    assert late.lines("error: ") == [
        f"error: no run far of run.dir={tmp_path}/not/seen goes on in the cluster {address}: give run.name and run.dir "
        "as they were given to the run"
    ]


async def test_the_actor_of_a_driver_that_lost_its_folder_is_replaced(ray_cluster: None, tmp_path: Path) -> None:
    """A frozen driver cannot end its own: the next one does, and answers in its place."""
    import ray

    from launch.control_actor import NAMESPACE, Control, actor_name

    config = compose(["run=smoke_cpu", f"run.dir={tmp_path}", "run.name=taken", "cluster.address=auto"])

    def control(name: str) -> Control:
        async def scale(num: int) -> str:
            return f"{name}: {num}"

        return Control(config, tmp_path / name, {"actors.replicas": scale}, timeout_s=30)

    first, second = control("first"), control("second")
    await first.start()
    await second.start()
    try:
        desk: Any = ray.get_actor(actor_name(config.run), namespace=NAMESPACE)
        assert await asyncio.wait_for(desk.ask.remote("actors.replicas", 3), 60) == ("done", "second: 3")
    finally:
        await second.stop()
        await first.stop()
