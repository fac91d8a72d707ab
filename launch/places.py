"""Where another replica of a room may run: a bundle of the run that is free, or anywhere in the cluster with room."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from launch.cluster import Reservation, alive_nodes
from launch.placement import Bundle, covers
from launch.plan import bundles
from launch.preflight_placement import unit
from lwz_ray.config import Config
from lwz_ray.errors import UserError

NAMES = {"actors": "rollout actors", "rewards": "reward replicas"}
"""Rooms of replicas, and what messages call several of them."""
POLL_S = 0.5
SETTLE_S = 3.0
"""Until Ray's account of what is free knows of an actor that was just created."""


@dataclass(frozen=True, slots=True)
class Place:
    """Room for one replica."""

    room: str
    group: PlacementGroup | None = None
    bundle: int | None = None
    """None: outside of the run's placement groups, wherever Ray finds room."""


class Places:
    """Keeps account of what the replicas of one run hold; shared by its rooms, for one event loop."""

    def __init__(self, config: Config, reservation: Reservation | None = None) -> None:
        """reservation: what the run has reserved, all of it free; None: nothing."""
        needed = bundles(config)
        self._reserved = needed if reservation is not None else {}
        self._one = {room: needed[room][0] for room in NAMES if room in needed}
        self._groups: dict[str, PlacementGroup | None] = {}
        self._free: dict[str, list[int]] = {}
        for room in self._one:
            self._groups[room] = reservation.group(room) if reservation is not None else None
            self._free[room] = reservation.bundles(room) if reservation is not None else []
        self._outside: Counter[str] = Counter()
        """Replicas outside of the placement groups, by room."""
        self._fresh: list[tuple[float, Bundle]] = []
        """Taken lately: (when, what)."""

    def reserved(self, room: str) -> list[Place]:
        """Take every free bundle of a room, at the start of a run."""
        taken, self._free[room] = self._free.get(room, []), []
        return [Place(room, self._groups[room], bundle) for bundle in taken]

    def outside(self, room: str) -> Place:
        """Take a place wherever there will be room."""
        self._outside[room] += 1
        self._fresh.append((time.monotonic(), self._one[room]))
        return Place(room)

    def give_back(self, place: Place) -> None:
        """Take note that the replica of this place has ended."""
        if place.bundle is None:
            self._outside[place.room] -= 1
        else:
            self._free[place.room].append(place.bundle)

    async def find(self, room: str, num: int, timeout_s: float) -> list[Place]:
        """Take places for `num` replicas, free bundles first, and wait until there are as many.

        Raises UserError where the cluster is too small, at once, or too busy, after timeout_s.
        """
        end = time.monotonic() + timeout_s
        while True:
            usable = self._usable(room)[:num]
            more = num - len(usable)
            if more == 0 or self._fits(room, more):
                self._free[room] = [bundle for bundle in self._free[room] if bundle not in usable]
                inside = [Place(room, self._groups[room], bundle) for bundle in usable]
                return [*inside, *(self.outside(room) for _ in range(more))]
            self._check_possible(room, more)
            if time.monotonic() > end:
                raise UserError(self._too_busy(room, more, timeout_s))
            await asyncio.sleep(POLL_S)

    def _usable(self, room: str) -> list[int]:
        """Return the free bundles whose node is there. Ray places those of a lost node anew when it finds room."""
        group, free = self._groups[room], self._free[room]
        if group is None or not free:
            return []
        table = placement_group_table(group)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return [bundle for bundle in free if table["bundles_to_node_id"].get(bundle) in alive]

    def _fits(self, room: str, num: int) -> bool:
        """Say whether nodes have room for `num` more, beside what was taken too lately for Ray's account."""
        now = time.monotonic()
        self._fresh = [(when, what) for when, what in self._fresh if now - when < SETTLE_S]
        left = [dict(node.free) for node in alive_nodes()]
        for what in [*(what for _, what in self._fresh), *[self._one[room]] * num]:
            node = next((node for node in left if covers(node, what)), None)
            if node is None:
                return False
            for kind, amount in what.items():
                node[kind] = node.get(kind, 0.0) - amount
        return True

    def _check_possible(self, room: str, num: int) -> None:
        """Raise UserError where the cluster could not hold as many even if nobody else used it."""
        have: Counter[str] = Counter()
        for node in alive_nodes():
            have.update(node.total)
        for kind, amount in self._one[room].items():
            own = sum(bundle.get(kind, 0.0) for items in self._reserved.values() for bundle in items)
            own += sum(self._one[other].get(kind, 0.0) * count for other, count in self._outside.items())
            if own + num * amount > have[kind] + 1e-6:
                remedy = f"{room}.num_{kind.lower()}s" if kind in ("CPU", "GPU") else f"{room}.resources"
                raise UserError(
                    f"{num} more {NAMES[room]} need {num * amount:g} {unit(kind)}, this run holds {own:g} of the "
                    f"cluster's {have[kind]:g}: ask for fewer, lower {remedy}, or add nodes"
                )

    def _too_busy(self, room: str, num: int, timeout_s: float) -> str:
        one = self._one[room]
        want = ", ".join(f"{amount * num:g} {unit(kind)}" for kind, amount in one.items())
        free = "; ".join(f"{n.name}: {_amounts(n.free, list(one))}" for n in alive_nodes())
        return (
            f"waited {timeout_s:g} s for {want} for {num} more {NAMES[room]}; free now: {free}; wait for other jobs "
            "to end or ask for fewer"
        )


def _amounts(found: Mapping[str, float], kinds: Sequence[str]) -> str:
    return ", ".join(f"{found.get(kind, 0.0):g} {unit(kind)}" for kind in kinds)
