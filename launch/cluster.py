"""The Ray cluster: start or join it, refuse what it cannot hold, reserve what the rooms need."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launch.plan import Bundle, bundles
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError

CLOSE_TIMEOUT_S = 20.0
"""For Ray actors to close what they hold; then they are killed."""


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


async def end_actors(handles: Sequence[Any]) -> None:
    """Close actors in order, then kill them: a killed one leaves vLLM's child process to itself. Never raises."""
    with contextlib.suppress(Exception):
        calls = asyncio.gather(*(h.close.remote() for h in handles), return_exceptions=True)
        await asyncio.wait_for(calls, CLOSE_TIMEOUT_S)
    for handle in handles:
        with contextlib.suppress(Exception):
            ray.kill(handle)


async def _ready(group: PlacementGroup) -> None:
    await group.ready()


def actor_options(
    num_cpus: float, num_gpus: float, threads: int, group: PlacementGroup | None, bundle: int | None
) -> dict[str, Any]:
    """Return Ray's options of one actor, in a bundle of `group` or (bundle=None) wherever there is room.

    Resources are Ray's to count; threads are set explicitly, or every process would take every core.
    """
    options: dict[str, Any] = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "runtime_env": {
            "env_vars": {
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
                "TOKENIZERS_PARALLELISM": "false",
                # Keep freed memory: glibc would map and clear the same activations anew in every layer.
                "MALLOC_MMAP_THRESHOLD_": str(2**33),
                "MALLOC_TRIM_THRESHOLD_": str(2**34),
                "VLLM_NO_USAGE_STATS": "1",
            }
        },
    }
    if bundle is not None:
        assert group is not None
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=bundle
        )
    return options


async def started(calls: Sequence[Awaitable[Any]], what: str, timeout_s: float) -> list[Any]:
    """Wait for every call of Ray actors; raises WaitTimeoutError, or what an actor failed of, with `what` in it."""
    together = asyncio.gather(*calls)
    # When another room fails first, or the run is stopped, nobody asks this one for its error any more.
    together.add_done_callback(lambda future: future.cancelled() or future.exception())
    try:
        return list(await asyncio.wait_for(together, timeout_s))
    except TimeoutError:
        raise WaitTimeoutError(what, timeout_s) from None
    except RayTaskError as error:
        raise InfrastructureError(f"while waiting for {what}: {error.cause}") from error
    except RayActorError as error:
        last = str(error).strip().splitlines()[-1]
        raise InfrastructureError(f"while waiting for {what}: the process died: {last}") from error
