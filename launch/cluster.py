"""The Ray cluster: start or join it, refuse what it cannot hold, reserve what the rooms need."""

import asyncio
import os
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from launch.plan import Bundle, bundles
from lwz_ray.config import Config
from lwz_ray.errors import UserError


def connect(config: Config) -> str:
    """Start a local cluster or join the one that is named; return where its logs lie."""
    address = config.cluster.address
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == "local":
        settings |= {"num_cpus": config.cluster.num_cpus, "include_dashboard": False}
    try:
        context: Any = ray.init(address=address, **settings)
    except ConnectionError as error:
        raise UserError(
            f"cluster.address={address}: no Ray cluster answers there ({error}); "
            "start one with `ray start --head`, or use cluster=local"
        ) from error
    return os.path.join(context.address_info.get("session_dir") or "", "logs")


def check_capacity(needed: dict[str, list[Bundle]], have: dict[str, float], biggest: dict[str, float]) -> None:
    """Raise UserError with the numbers where the cluster is too small, in all or in its largest node."""
    for kind in ("CPU", "GPU"):
        want = sum(b.get(kind, 0.0) for room in needed.values() for b in room)
        total = have.get(kind, 0.0)
        if want > total + 1e-6:
            parts = ", ".join(f"{room} {sum(b.get(kind, 0.0) for b in items):g}" for room, items in needed.items())
            raise UserError(
                f"the run needs {want:g} {kind}s ({parts}), the cluster has {total:g}: "
                f"lower replicas, ranks or num_{kind.lower()}s, or add nodes"
            )
        for room, items in needed.items():
            one = max((b.get(kind, 0.0) for b in items), default=0.0)
            if one > biggest.get(kind, 0.0) + 1e-6:
                raise UserError(
                    f"one Ray actor of {room} needs {one:g} {kind}s, the largest node has {biggest.get(kind, 0.0):g}"
                )


async def reserve(config: Config) -> tuple[PlacementGroup, dict[str, list[int]]]:
    """Reserve every bundle in one placement group; return it and each room's bundle indices.

    Raises UserError with the numbers when the cluster is too small, at once, or too busy, after `start_timeout_s`.
    """
    needed = bundles(config)
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    biggest = {kind: max((n.get(kind, 0.0) for n in nodes), default=0.0) for kind in ("CPU", "GPU")}
    have: dict[str, float] = {**ray.cluster_resources()}
    check_capacity(needed, have, biggest)
    flat: list[Bundle] = []
    index: dict[str, list[int]] = {}
    for room, items in needed.items():
        index[room] = list(range(len(flat), len(flat) + len(items)))
        flat.extend(items)
    group = placement_group(flat, strategy="PACK", name=f"lwz_ray-{config.run.name}")
    try:
        await asyncio.wait_for(_ready(group), config.cluster.start_timeout_s)
    except TimeoutError:
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        remove_placement_group(group)
        want = {k: sum(b.get(k, 0.0) for b in flat) for k in ("CPU", "GPU")}
        raise UserError(
            f"waited {config.cluster.start_timeout_s:g} s for {want['CPU']:g} CPUs and {want['GPU']:g} GPUs in "
            f"{len(flat)} bundles; free now: {free.get('CPU', 0.0):g} CPUs, {free.get('GPU', 0.0):g} GPUs; "
            "wait for other jobs to end or lower replicas and ranks"
        ) from None
    return group, index


async def _ready(group: PlacementGroup) -> None:
    await group.ready()
