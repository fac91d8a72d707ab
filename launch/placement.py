"""Which node takes which bundle: Ray's own ways to place a group, tried out before anything is reserved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product

Bundle = dict[str, float]
"""What one Ray actor holds, by resource; it lies on one node."""

STRATEGIES = {"learners": "PACK", "critic": "PACK", "actors": "SPREAD", "rewards": "SPREAD"}
"""Ranks talk to each other in every layer; engines and scorers only to the loop, and a lost node should take few."""
_DIGITS = 4
"""Ray counts resources in ten-thousandths."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the cluster."""

    name: str
    total: Bundle
    free: Bundle
    node_id: str = ""
    """Ray's; empty in a plan."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where every bundle goes."""

    order: tuple[str, ...]
    """The rooms as they are to be reserved, one after the other."""
    strategies: dict[str, str]
    """Of Ray's placement groups, by room."""
    nodes: dict[str, list[int]]
    """Room -> for each bundle the index of its node."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """The first bundle that finds no node, and what the nodes had left when it was its turn."""

    room: str
    index: int
    bundle: Bundle
    left: list[Bundle]


def place(rooms: Mapping[str, Sequence[Bundle]], capacities: Sequence[Bundle]) -> Placement | Misfit:
    """Find an order and strategies with which every room fits, packed rooms on as few nodes as possible.

    capacities: what each node has to give. A packed room becomes STRICT_PACK where one node can hold it. Of the orders
    that fit, the first with the fewest nodes under packed rooms is taken; packed rooms come first, then large bundles.
    """
    rooms = {room: items for room, items in rooms.items() if items}
    packed = [room for room in rooms if STRATEGIES[room] == "PACK"]
    fewest = sum(_num_nodes_alone(rooms[room], capacities) for room in packed)
    orders = _orders(rooms)
    best: tuple[int, Placement] | None = None
    misfit: Misfit | None = None
    for strict in product((True, False), repeat=len(packed)):
        strategies = {room: STRATEGIES[room] for room in rooms}
        strategies |= {room: "STRICT_PACK" for room, alone in zip(packed, strict, strict=True) if alone}
        for order in orders:
            found = _try(rooms, order, strategies, capacities)
            if isinstance(found, Misfit):
                misfit = found
                continue
            spent = sum(len(set(found.nodes[room])) for room in packed)
            if best is None or spent < best[0]:
                best = spent, found
            if spent == fewest:
                return found
    if best is not None:
        return best[1]
    assert misfit is not None
    first = _try(rooms, orders[0], {room: STRATEGIES[room] for room in rooms}, capacities)
    return first if isinstance(first, Misfit) else misfit


def covers(capacity: Bundle, bundle: Bundle) -> bool:
    """Say whether a node with this much left can take the bundle."""
    return all(round(capacity.get(kind, 0.0) - amount, _DIGITS) >= 0 for kind, amount in bundle.items())


def total(bundles: Sequence[Bundle]) -> Bundle:
    """Add bundles up."""
    kinds = dict.fromkeys(kind for bundle in bundles for kind in bundle)
    return {kind: round(sum(b.get(kind, 0.0) for b in bundles), _DIGITS) for kind in kinds}


def _orders(rooms: Mapping[str, Sequence[Bundle]]) -> list[tuple[str, ...]]:
    """Return the orders to try, the most promising first: packed rooms, then rooms of large bundles."""

    def rank(room: str) -> tuple[bool, float, float]:
        largest = max(rooms[room], key=lambda b: (b.get("GPU", 0.0), b.get("CPU", 0.0)))
        return STRATEGIES[room] != "PACK", -largest.get("GPU", 0.0), -largest.get("CPU", 0.0)

    return list(permutations(sorted(rooms, key=rank)))


def _num_nodes_alone(bundles: Sequence[Bundle], capacities: Sequence[Bundle]) -> int:
    found = _pack(bundles, [dict(c) for c in capacities])
    return len(set(found)) if isinstance(found, list) else len(capacities)


def _try(
    rooms: Mapping[str, Sequence[Bundle]],
    order: tuple[str, ...],
    strategies: dict[str, str],
    capacities: Sequence[Bundle],
) -> Placement | Misfit:
    left = [dict(c) for c in capacities]
    nodes: dict[str, list[int]] = {}
    ways = {"PACK": _pack, "STRICT_PACK": _strict_pack, "SPREAD": _spread}
    for room in order:
        found = ways[strategies[room]](rooms[room], left)
        if isinstance(found, int):
            return Misfit(room, found, dict(rooms[room][found]), left)
        nodes[room] = found
    return Placement(order, dict(strategies), nodes)


def _best(bundle: Bundle, left: Sequence[Bundle], candidates: Sequence[int]) -> int | None:
    """Return the node with the largest share left after the bundle, over the resources that the bundle names."""

    def share(node: int) -> float:
        have = left[node]
        return sum((have[kind] - amount) / have[kind] for kind, amount in bundle.items() if have.get(kind))

    return max((n for n in candidates if covers(left[n], bundle)), key=share, default=None)


def _take(bundle: Bundle, left: Bundle) -> None:
    for kind, amount in bundle.items():
        left[kind] = round(left.get(kind, 0.0) - amount, _DIGITS)


def _pack(bundles: Sequence[Bundle], left: list[Bundle]) -> list[int] | int:
    """Fill one node after the other; return each bundle's node, or the index of a bundle without one."""
    found = [-1] * len(bundles)
    waiting = list(range(len(bundles)))
    candidates = list(range(len(left)))
    while waiting:
        node = _best(bundles[waiting[0]], left, candidates)
        if node is None:
            return waiting[0]
        for index in list(waiting):
            if covers(left[node], bundles[index]):
                _take(bundles[index], left[node])
                found[index] = node
                waiting.remove(index)
        candidates.remove(node)
    return found


def _strict_pack(bundles: Sequence[Bundle], left: list[Bundle]) -> list[int] | int:
    whole = total(bundles)
    node = _best(whole, left, range(len(left)))
    if node is None:
        return 0
    _take(whole, left[node])
    return [node] * len(bundles)


def _spread(bundles: Sequence[Bundle], left: list[Bundle]) -> list[int] | int:
    """Give each bundle a node of its own while there are such; then nodes are used again."""
    found: list[int] = []
    for index, bundle in enumerate(bundles):
        used = sorted(set(found))
        node = _best(bundle, left, [n for n in range(len(left)) if n not in used])
        node = _best(bundle, left, used) if node is None else node
        if node is None:
            return index
        _take(bundle, left[node])
        found.append(node)
    return found
