"""Placement groups on a real Ray: reserved together or not at all, with an answer where they cannot be had."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from launch.cluster import actor_options, reserve
from launch.compose import compose
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from tests.integration.harness import read_json

pytestmark = pytest.mark.ray


@pytest.fixture
def config(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return the smoke preset's config: 0.8 CPUs for the engine, 2 x 0.1 for rewards, 2 x 0.4 for learners."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "smoke_cpu").mkdir()
    return compose(["run=smoke_cpu", f"run.dir={tmp_path}", "cluster.start_timeout_s=3"])


def groups_there() -> list[dict[str, Any]]:
    """Return the run's placement groups that have not been removed."""
    found = placement_group_table().values()
    return [g for g in found if g["name"].startswith("lwz_ray-smoke_cpu-") and g["state"] != "REMOVED"]


async def until_free(cpus: float) -> None:
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0.0) < cpus:
        assert time.monotonic() < end, ray.available_resources()
        await asyncio.sleep(0.1)


async def test_each_room_has_a_group_of_its_own(config: Config, capsys: pytest.CaptureFixture[str]):
    await until_free(2.0)
    reservation = await reserve(config)
    try:
        assert [reservation.bundles(room) for room in ("actors", "rewards", "learners", "critic")] == [
            [0], [0, 1], [0, 1], [],
        ]  # fmt: skip
        assert reservation.group("critic") is None
        rows = read_json(Path(config.run.dir) / "smoke_cpu" / "placement.json")["bundles"]
        assert rows == reservation.describe()
        assert [(row["room"], row["strategy"], row["resources"]) for row in rows] == [
            *[("learners", "STRICT_PACK", {"CPU": 0.4})] * 2,
            ("actors", "SPREAD", {"CPU": 0.8}),
            *[("rewards", "SPREAD", {"CPU": 0.1})] * 2,
        ]
        (node,) = {row["node_id"] for row in rows}
        assert node == ray.nodes()[0]["NodeID"]
        assert "actors 1, rewards 2, learners 2 (1.8 of 2 CPUs)" in capsys.readouterr().out
        options = actor_options(0.8, 0.0, 1, reservation.group("actors"), reservation.bundles("actors")[0])
        where = ray.remote(lambda: ray.get_runtime_context().get_placement_group_id()).options(**options).remote()
        group = reservation.group("actors")
        assert group is not None
        assert await asyncio.wait_for(where, 60) == group.id.hex()
    finally:
        reservation.remove()
    await until_free(2.0)
    assert groups_there() == []


async def test_what_is_held_by_others_is_waited_for_and_nothing_is_kept(config: Config):
    await until_free(2.0)
    other = placement_group([{"CPU": 1.0}])
    await asyncio.wait_for(other.ready(), 60)
    try:
        with pytest.raises(UserError) as refusal:
            await reserve(config)
        text = str(refusal.value)
        assert text.startswith("waited 3 s for 0.8 CPUs in 1 bundles of actors; free now: node ")
        assert text.endswith(": 0.2 CPUs; wait for other jobs to end or lower replicas and ranks")
        assert not (Path(config.run.dir) / "smoke_cpu" / "placement.json").exists()
    finally:
        remove_placement_group(other)
    await until_free(2.0)
    assert groups_there() == []


async def test_promised_nodes_are_waited_for(config: Config):
    joined = config.cluster.model_copy(update={"address": "auto", "nodes": 2})
    with pytest.raises(UserError) as refusal:
        await reserve(config.model_copy(update={"cluster": joined}))
    assert str(refusal.value).startswith(
        "waited 3 s for cluster.nodes=2 nodes with 0 GPUs each, 1 have joined: start the others"
    )
    assert groups_there() == []
