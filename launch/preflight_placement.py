"""Does the run fit the cluster: the placement node by node, or a refusal with the arithmetic."""

import math
from collections.abc import Mapping, Sequence

from launch.placement import Bundle, Misfit, Node, Placement, covers, place, total
from lwz_ray.config import Config
from lwz_ray.errors import UserError

UNITS = {"CPU": "CPUs", "GPU": "GPUs"}
_NO_CAPACITY: Bundle = {}


def check_fits(config: Config, rooms: Mapping[str, Sequence[Bundle]], nodes: Sequence[Node]) -> Placement:
    """Return a placement on these nodes, on what is free where that is enough and else on all they have.

    Raises UserError with the numbers where the cluster is too small: in all, for one bundle, or piece by piece.
    """
    totals = [node.total for node in nodes]
    _check_totals(rooms, total(totals))
    _check_single_bundles(config, rooms, totals)
    now = place(rooms, [node.free for node in nodes])
    if isinstance(now, Placement):
        return now
    found = place(rooms, totals)
    if isinstance(found, Misfit):
        raise UserError(_misfit(config, found, nodes))
    return found


def planned_nodes(config: Config) -> list[Node]:
    """Return the nodes that the config says the cluster has, for a plan; none where it does not say how many."""
    cluster = config.cluster
    have: Bundle = {"GPU": float(cluster.gpus_per_node)}
    if cluster.num_cpus is not None and cluster.address == "local":
        have["CPU"] = float(cluster.num_cpus)
    return [Node(f"node {i + 1}", have, have) for i in range(cluster.nodes or 0)]


def plan_lines(config: Config, rooms: Mapping[str, Sequence[Bundle]]) -> list[str]:
    """Return the placement on the nodes that the config names, node by node, or why there is none.

    CPUs and custom resources that the config says nothing of are left out; a running cluster is asked for them.
    """
    gpus = sum(b.get("GPU", 0.0) for items in rooms.values() for b in items)
    nodes = planned_nodes(config) or _enough_nodes(config, rooms, gpus)
    known = set(nodes[0].total) if nodes else set()
    counted = {room: [_only(b, known) for b in items] for room, items in rooms.items()}
    if not nodes or (len(nodes) == 1 and gpus == 0):
        return []
    try:
        found = check_fits(config, counted, nodes)
    except UserError as error:
        return [f"  does not fit: {error}"]
    head = "  node by node, as it is reserved: " + ", ".join(f"{r} {found.strategies[r]}" for r in found.order)
    return [head, *(f"    {line}" for line in node_lines(found.nodes, rooms, nodes))]


def node_lines(
    placed: Mapping[str, Sequence[int | None]], rooms: Mapping[str, Sequence[Bundle]], nodes: Sequence[Node]
) -> list[str]:
    """Return one line for each node, neighbours that hold the same in one."""
    lines: list[tuple[str, list[str]]] = []
    for number, node in enumerate(nodes):
        held = {room: [rooms[room][i] for i, n in enumerate(where) if n == number] for room, where in placed.items()}
        parts = ", ".join(f"{room} {len(items)}" for room, items in held.items() if items) or "nothing"
        used = total([b for items in held.values() for b in items])
        sums = ", ".join(_used(kind, used[kind], node.total) for kind in used)
        text = f"{parts} ({sums})" if sums else parts
        if lines and lines[-1][0] == text:
            lines[-1][1].append(node.name)
        else:
            lines.append((text, [node.name]))
    return [f"{_names(names)}: {text}" for text, names in lines]


def _enough_nodes(config: Config, rooms: Mapping[str, Sequence[Bundle]], gpus: float) -> list[Node]:
    """Return as many of the config's nodes as the rooms' GPUs need; none where a node has none."""
    each = config.cluster.gpus_per_node
    if not gpus or not each:
        return []
    have: Bundle = {"GPU": float(each)}
    counted = {room: [_only(b, {"GPU"}) for b in items] for room, items in rooms.items()}
    fewest = math.ceil(round(gpus / each, 4))
    most = fewest + sum(len(items) for items in rooms.values())
    count = next((n for n in range(fewest, most) if isinstance(place(counted, [have] * n), Placement)), fewest)
    return [Node(f"node {i + 1}", have, have) for i in range(count)]


def _only(bundle: Bundle, kinds: set[str]) -> Bundle:
    return {kind: amount for kind, amount in bundle.items() if kind in kinds}


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} nodes)"


def _used(kind: str, amount: float, have: Bundle) -> str:
    of = f" of {have[kind]:g}" if kind in have else ""
    return f"{amount:g}{of} {unit(kind)}"


def unit(kind: str) -> str:
    """Return what a resource is called after a number."""
    return UNITS.get(kind, f"'{kind}'")


def _check_totals(rooms: Mapping[str, Sequence[Bundle]], have: Bundle) -> None:
    for kind, want in total([b for items in rooms.values() for b in items]).items():
        if covers(have, {kind: want}):
            continue
        there = have.get(kind, 0.0)
        if kind in UNITS:
            parts = ", ".join(f"{room} {total(items).get(kind, 0.0):g}" for room, items in rooms.items())
            remedy = f"lower replicas, ranks or num_{kind.lower()}s, or add nodes"
        else:
            users = {room: total(items)[kind] for room, items in rooms.items() if kind in total(items)}
            parts = ", ".join(f"{room} {amount:g}" for room, amount in users.items())
            keys = " or ".join(f"{'learners' if room == 'critic' else room}.resources" for room in users)
            remedy = f"start nodes with `ray start --resources='{{\"{kind}\": {want:g}}}'`, or change {keys}"
        raise UserError(f"the run needs {want:g} {unit(kind)} ({parts}), the cluster has {there:g}: {remedy}")


def _check_single_bundles(config: Config, rooms: Mapping[str, Sequence[Bundle]], totals: Sequence[Bundle]) -> None:
    for room, items in rooms.items():
        for kind, amount in (items[0] if items else _NO_CAPACITY).items():
            largest = max((t.get(kind, 0.0) for t in totals), default=0.0)
            if not covers({kind: largest}, {kind: amount}):
                raise UserError(
                    f"one bundle of {room} needs {amount:g} {unit(kind)} on one node, the largest node has "
                    f"{largest:g}: {_smaller(config, room, kind, largest)}"
                )


def _smaller(config: Config, room: str, kind: str, largest: float) -> str:
    if kind not in UNITS:
        return f"lower {'learners' if room == 'critic' else room}.resources, or offer more on one node"
    key = f"{room}.num_{kind.lower()}s"
    if kind == "GPU" and room == "actors" and config.actors.tensor_parallel_size > largest:
        return (
            f"a tensor-parallel group is not split over nodes; lower actors.tensor_parallel_size="
            f"{config.actors.tensor_parallel_size} and {key} to at most {largest:g}, or use larger nodes"
        )
    return f"lower {key}, or use larger nodes"


def _misfit(config: Config, found: Misfit, nodes: Sequence[Node]) -> str:
    """Say which bundle finds no node although the sums are enough, and what each node has left."""
    kinds = list(found.bundle)
    need = ", ".join(f"{found.bundle[k]:g} {unit(k)}" for k in kinds)
    groups: dict[str, list[str]] = {}
    for node, left in zip(nodes, found.left, strict=True):
        text = ", ".join(f"{left.get(k, 0.0):g} of {node.total.get(k, 0.0):g} {unit(k)}" for k in kinds)
        groups.setdefault(text, []).append(node.name)
    rest = "; ".join(f"{_names(names)}: {text}" for text, names in groups.items())
    return (
        f"bundle {found.index + 1} of {found.room} needs {need} on one node; when the others have theirs, the nodes "
        f"have left: {rest}. Make its bundle smaller, lower replicas or ranks, or add nodes"
    )
