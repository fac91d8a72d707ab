"""Resident memory of a run's processes, room by room: memory that creeps up shows as a curve."""

import logging
from collections.abc import Callable, Mapping, Sequence

import psutil
import ray
from ray._private.state import actors as actor_table

log = logging.getLogger(__name__)

MIB = 2**20
ROOM_OF = {"RolloutActor": "actors", "RewardWorker": "rewards", "LearnerActor": "learners"}
"""By the name of the Ray actor's class; the critic's ranks are learners too."""

Find = Callable[[], Mapping[str, Sequence[int]]]
"""Returns the process ids of each room's Ray actors on this node."""


class MemoryWatch:
    """Reads what the driver and the Ray actors on its node hold, engines below an actor included."""

    def __init__(self, find: Find | None = None) -> None:
        """find: None asks Ray."""
        self._find = actors_here if find is None else find
        self._said: set[str] = set()

    def metrics(self) -> dict[str, float]:
        """Return `memory/driver_mib`, and `memory/<room>_mib` as the sum over the room's processes on this node.

        A room with no Ray actor on this node has no number: what another node holds is not known here.
        """
        out = {"memory/driver_mib": resident_mib([psutil.Process()])}
        found = self._find()
        for room in ROOM_OF.values():
            processes = [p for pid in found.get(room, ()) for p in with_children(pid)]
            if processes:
                out[f"memory/{room}_mib"] = resident_mib(processes)
            elif room not in self._said:
                self._said.add(room)
                log.info("memory/%s_mib: not measured, no Ray actor of that room runs on this node", room)
        return out


def combined(*sources: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
    """Return one source of metrics out of several with keys of their own.

    >>> combined(lambda: {"a/x": 1.0}, lambda: {"b/y": 2.0})()
    {'a/x': 1.0, 'b/y': 2.0}
    """
    return lambda: {key: value for source in sources for key, value in source().items()}


def actors_here() -> dict[str, list[int]]:
    """Return the process ids of this job's living Ray actors on this node, by room.

    Read from Ray's own table: its public listing needs the dashboard, which a local run does not start.
    """
    context = ray.get_runtime_context()
    job, node = context.get_job_id(), context.get_node_id()
    found: dict[str, list[int]] = {}
    for actor in actor_table(actor_state_name="ALIVE").values():
        room = ROOM_OF.get(actor["ActorClassName"].rpartition(".")[2])
        if room is not None and actor["JobID"] == job and actor["Address"]["NodeID"] == node:
            found.setdefault(room, []).append(actor["Pid"])
    return found


def with_children(pid: int) -> list[psutil.Process]:
    """Return a process and all below it; none where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def resident_mib(processes: Sequence[psutil.Process]) -> float:
    """Return what the processes hold together; one that has ended holds nothing."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MIB
