"""The Ray cluster: start or join it, refuse what it cannot hold, reserve what the rooms need."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import AuthenticationError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launch.files import write_json
from launch.placement import Bundle, Node, total
from launch.plan import bundles
from launch.preflight_placement import check_fits, node_lines, unit
from launch.run_folder import run_path
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError

POLL_S = 0.5
REACH_TIMEOUT_S = 15.0
"""For a cluster's head to take a connection."""
MEMORY_BOUNDS = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
    "MALLOC_ARENA_MAX": "2",
}
"""What keeps a process on CPUs from growing for hundreds of steps; the driver's environment may say otherwise.

oneDNN and torch's wrapper around it keep a compiled kernel for each of the last 1,024 shapes, and every text has a new
one. glibc gives threads heaps of their own, up to eight a core, each of which keeps the most that it ever held.
"""
CLOSE_TIMEOUT_S = 20.0
"""For Ray actors to close what they hold; then they are killed."""


def connect(config: Config) -> str:
    """Start a local cluster or join the one that is named; return where its logs lie."""
    address = config.cluster.address
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == "local":
        settings |= {"num_cpus": config.cluster.num_cpus, "include_dashboard": False}
    context = join(address, settings)
    return os.path.join(context.address_info.get("session_dir") or "", "logs")


def join(address: str, settings: Mapping[str, Any]) -> Any:
    """Call `ray.init` with these settings; raises UserError where no cluster answers or it asks for another token."""
    _check_reachable(address)
    try:
        return ray.init(address=address, **settings)
    except ConnectionError as error:
        raise UserError(
            f"cluster.address={address}: no Ray cluster answers there ({error}); "
            "start one with `ray start --head`, or use cluster=local"
        ) from error
    except AuthenticationError as error:
        raise UserError(
            f"cluster.address={address}: the cluster asks for another token than this process has; take the one that "
            "it was started with, as ~/.ray/auth_token or through RAY_AUTH_TOKEN_PATH"
        ) from error


def _check_reachable(address: str) -> None:
    """Raise UserError where nobody listens at host:port: Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cluster.address={address}: nobody answers there ({error}); see that the cluster runs and that this "
            "machine reaches its head, or use cluster=local"
        ) from error


class Reservation:
    """One placement group for each room, all of them ready. Bundles of a lost node are placed anew by Ray."""

    def __init__(self, groups: Mapping[str, PlacementGroup], strategies: Mapping[str, str]) -> None:
        self._groups = dict(groups)
        self._strategies = dict(strategies)

    def group(self, room: str) -> PlacementGroup | None:
        """Return the room's placement group; None where the stage has no such room."""
        return self._groups.get(room)

    def bundles(self, room: str) -> list[int]:
        """Return the indices of the room's bundles, one for each Ray actor that it starts with."""
        group = self._groups.get(room)
        return [] if group is None else list(range(group.bundle_count))

    def describe(self) -> list[dict[str, Any]]:
        """Return one row a bundle: room, bundle, strategy, node_id, address and resources, by Ray's own account."""
        addresses = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes()}
        rows = []
        for room, group in self._groups.items():
            nodes = placement_group_table(group)["bundles_to_node_id"]
            for index, bundle in enumerate(group.bundle_specs):
                row = {"room": room, "bundle": index, "strategy": self._strategies[room], "node_id": nodes[index]}
                rows.append(row | {"address": addresses.get(nodes[index]), "resources": dict(bundle)})
        return rows

    def remove(self) -> None:
        """Give everything back."""
        for group in self._groups.values():
            remove_placement_group(group)


async def reserve(config: Config) -> Reservation:
    """Reserve the bundles of every room of the stage, print where they lie, and leave it as `placement.json`.

    Rooms are reserved one after the other in the order that the preflight found, so that large bundles still find a
    whole node. Raises UserError with the numbers when the cluster is too small (at once, or after `start_timeout_s`
    where `cluster.nodes` promises more nodes than have joined) or too busy, after `start_timeout_s`.
    """
    needed = bundles(config)
    end = time.monotonic() + config.cluster.start_timeout_s
    await _until_joined(config, end)
    fit = check_fits(config, needed, alive_nodes())
    groups: dict[str, PlacementGroup] = {}
    try:
        for room in fit.order:
            name = f"lwz_ray-{config.run.name}-{room}"
            groups[room] = placement_group(needed[room], strategy=fit.strategies[room], name=name)
            await asyncio.wait_for(_ready(groups[room]), max(1.0, end - time.monotonic()))
    except BaseException as error:
        Reservation(groups, fit.strategies).remove()
        if not isinstance(error, TimeoutError):
            raise
        raise UserError(_too_busy(config, needed, list(groups)[-1])) from None
    reservation = Reservation(groups, fit.strategies)
    _report(config, needed, reservation)
    return reservation


def alive_nodes() -> list[Node]:
    """Return the cluster's nodes, in the order in which they are known, with what they have and what is free."""
    free = available_resources_per_node()
    nodes = []
    for n in ray.nodes():
        if n["Alive"]:
            name = f"node {n['NodeManagerAddress']} ({n['NodeID'][:8]})"
            left = countable(free.get(n["NodeID"], {}))
            nodes.append(Node(name, countable(n["Resources"]), left, n["NodeID"]))
    return nodes


def countable(resources: Mapping[str, float]) -> Bundle:
    """Leave out memory in bytes; what Ray names a node by, such as `accelerator_type:H100`, may be asked for."""
    return {kind: amount for kind, amount in resources.items() if kind not in ("memory", "object_store_memory")}


async def _until_joined(config: Config, end: float) -> None:
    """Wait for the nodes that the config promises: workers of a cluster that is being started join one by one."""
    cluster = config.cluster
    if cluster.nodes is None or cluster.address == "local":
        return
    while True:
        joined = sum(node.total.get("GPU", 0.0) + 1e-6 >= cluster.gpus_per_node for node in alive_nodes())
        if joined >= cluster.nodes:
            return
        if time.monotonic() > end:
            raise UserError(
                f"waited {cluster.start_timeout_s:g} s for cluster.nodes={cluster.nodes} nodes with "
                f"{cluster.gpus_per_node} GPUs each, {joined} have joined: start the others, raise "
                "cluster.start_timeout_s, or set cluster.nodes=null to go on with what is there"
            )
        await asyncio.sleep(POLL_S)


def _too_busy(config: Config, needed: Mapping[str, list[Bundle]], room: str) -> str:
    want = ", ".join(f"{amount:g} {unit(kind)}" for kind, amount in total(needed[room]).items())
    free = "; ".join(
        f"{node.name}: " + ", ".join(f"{node.free.get(kind, 0.0):g} {unit(kind)}" for kind in total(needed[room]))
        for node in alive_nodes()
    )
    return (
        f"waited {config.cluster.start_timeout_s:g} s for {want} in {len(needed[room])} bundles of {room}; free now: "
        f"{free}; wait for other jobs to end or lower replicas and ranks"
    )


def _report(config: Config, needed: Mapping[str, list[Bundle]], reservation: Reservation) -> None:
    rows, nodes = reservation.describe(), alive_nodes()
    numbers = {node.node_id: i for i, node in enumerate(nodes)}
    placed = {room: [numbers.get(row["node_id"]) for row in rows if row["room"] == room] for room in needed}
    print("placement", *node_lines(placed, needed, nodes), sep="\n  ", flush=True)
    folder = run_path(config.run)
    if folder.is_dir():
        write_json(folder / "placement.json", {"bundles": rows})


async def end_actors(handles: Sequence[Any]) -> None:
    """Close actors in order, then kill them: a killed one leaves vLLM's child process to itself. Never raises."""
    with contextlib.suppress(Exception):
        calls = asyncio.gather(*(h.close.remote() for h in handles), return_exceptions=True)
        await asyncio.wait_for(calls, CLOSE_TIMEOUT_S)
    for handle in handles:
        kill_actor(handle)


def kill_actor(handle: Any) -> None:
    """Kill a Ray actor at once; never raises, it may be gone."""
    with contextlib.suppress(Exception):
        ray.kill(handle)


async def _ready(group: PlacementGroup) -> None:
    await group.ready()


def actor_options(
    num_cpus: float,
    num_gpus: float,
    threads: int,
    group: PlacementGroup | None,
    bundle: int | None,
    resources: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return Ray's options of one actor, in a bundle of `group` or (bundle=None) wherever there is room.

    resources: the room's custom resources, which bind an actor outside of the group to the same nodes. Resources are
    Ray's to count; threads are set explicitly, or every process would take every core.
    """
    options: dict[str, Any] = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "resources": dict(resources or {}),
        "runtime_env": {
            "env_vars": {
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
                "TOKENIZERS_PARALLELISM": "false",
                # Keep freed memory: glibc would map and clear the same activations anew in every layer.
                "MALLOC_MMAP_THRESHOLD_": str(2**33),
                "MALLOC_TRIM_THRESHOLD_": str(2**34),
                "VLLM_NO_USAGE_STATS": "1",
                **{name: os.environ.get(name, bound) for name, bound in MEMORY_BOUNDS.items()},
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
    except RayError as error:  # its process died, was killed for memory, or found no node
        raise InfrastructureError(f"while waiting for {what}: the process died: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return in one line what Ray says of the end of an actor's process."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    told = next((line for line in lines if "low on memory" in line or "is dead because" in line), lines[-1])
    return told.split(" Some common causes include")[0].strip() or type(error).__name__
