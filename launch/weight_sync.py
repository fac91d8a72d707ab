"""Weights from the learner group to every rollout engine, in flight: knows both rooms, moves nothing itself.

    stage   every rank gathers, rank 0 writes buckets to files of its host        the learner is busy
    load    shm           engines on rank 0's host read these files               the learner may train again
            object_store  rank 0 reads them in a thread of its own, bucket by bucket; Ray's object store carries
                          each to the engine's host, where the rollout actor stages it for its engine
    join    a new engine gets the version that was staged last, in the same way, before its first request

What was staged last stays on rank 0's host until every engine has something newer. (nccl: see nccl_sync.py)
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.engine import EngineLostError
from launch.cluster import reason_of
from lwz_ray.errors import InfrastructureError, LearnerLostError, UserError, WaitTimeoutError
from lwz_ray.staging import StagedWeights

Way = Literal["shm", "object_store"]
OnFailed = Callable[[str, str], None]
"""(name of the rollout actor, reason)"""

SHARED_BUCKETS = 4
"""In Ray's object store: engines that take a bucket at about the same time take the same copy of it."""
UPDATE_MARGIN_S = 130.0
"""For an engine to stop and go on; samples that it waits for and the load itself have `weights.timeout_s` each."""
LOOK_TIMEOUT_S = 15.0
"""For learner rank 0, or an engine, to give a sign of life when a transfer or a load has failed."""
LOST = (RayActorError, EngineLostError, WaitTimeoutError)
"""An engine that fails so is gone or frozen; the weights are not to blame."""


@dataclass(eq=False, slots=True)
class _Member:
    """A rollout engine that takes part."""

    name: str
    handle: Any
    node_id: str
    holds: StagedWeights | None = None
    """None: the model folder's, or nobody knows."""
    updating: "asyncio.Future[float] | None" = None
    """The last update that was asked for; its caller may have been cancelled while it goes on."""


class StagedWeightSync:
    """Implements `WeightSync` over Ray handles. `load` and `join` take turns; one engine's failure is not another's."""

    def __init__(
        self, ranks: Sequence[Any], learner_node: str, transport: str, timeout_s: float, on_failed: OnFailed
    ) -> None:
        """ranks: handles of LearnerActor; learner_node: node id of rank 0.

        transport: auto, shm or object_store; auto chooses for each engine by its node. timeout_s: for staging, for a
        transfer and for a load, each. on_failed hears of engines that are left out; their owner replaces them.
        """
        self._ranks, self._node = list(ranks), learner_node
        self._transport, self._timeout_s, self._on_failed = transport, timeout_s, on_failed
        self._members: dict[str, _Member] = {}
        self._staged: StagedWeights | None = None
        self._lock = asyncio.Lock()
        self._available = asyncio.Event()
        self._available.set()  # version 0 is the model folder's weights, with which every engine starts

    def attach_learners(self, ranks: Sequence[Any], node_id: str) -> None:
        """Take weights from a learner group that was started anew; engines that join wait for its first `stage`."""
        self._ranks, self._node = list(ranks), node_id
        self._staged = None
        self._available.clear()

    async def stage(self, policy_version: int) -> dict[str, float]:
        """Take the learner's weights as this version; it may train again when this returns.

        Raises LearnerLostError where a rank is gone or late, or what a rank raised.
        """
        started = time.monotonic()
        calls = [rank.stage_weights.remote(policy_version) for rank in self._ranks]
        what = f"the learner to stage policy version {policy_version}"
        try:
            results = await in_time(asyncio.gather(*calls), self._timeout_s, what)
        except RayActorError as error:
            raise LearnerLostError(f"while waiting for {what}: {reason_of(error)}") from error
        except WaitTimeoutError as error:  # a gathering that hangs takes every rank with it, though all may live
            raise LearnerLostError(str(error)) from None
        self._staged = results[0]
        self._available.set()
        return {"weights/stage_s": time.monotonic() - started, "weights/bytes": float(results[0].num_bytes)}

    async def load(self, policy_version: int) -> dict[str, float]:
        """Bring what was staged last to every engine that does not have it.

        An engine that fails is reported and left out. Raises LearnerLostError, or InfrastructureError where no engine
        is left and one of them said that it cannot load these weights. With engines that died there may be none left
        either: those that replace them get the weights when they join.
        """
        async with self._lock:
            started, staged = time.monotonic(), self._staged
            if staged is None or staged.policy_version != policy_version:
                raise RuntimeError(f"load of policy version {policy_version}, staged is {staged}")
            members = [m for m in self._members.values() if m.holds is not staged]
            buckets = _Buckets(self._ranks[0], staged)
            ends = await asyncio.gather(*(self._give(m, staged, buckets) for m in members), return_exceptions=True)
            failed = {m: e for m, e in zip(members, ends, strict=True) if isinstance(e, BaseException)}
            if failed:
                await self._leave_out(failed, policy_version)
            await self._drop_older()
            pauses = [end for end in ends if not isinstance(end, BaseException)]
            metrics = {"weights/load_s": time.monotonic() - started}
            if pauses:
                metrics |= {"weights/pause_s": max(pauses), "weights/pause_mean_s": sum(pauses) / len(pauses)}
            return metrics

    async def join(self, name: str, handle: Any, node_id: str) -> int:
        """Give a new engine the newest weights and make it a member; return the version that it serves.

        handle: of a RolloutActor that was started and serves nobody yet. Raises InfrastructureError where it does not
        take the weights, UserError where `weights.transport=shm` cannot reach it.
        """
        member = _Member(name, handle, node_id)
        while True:
            what = f"the learner to stage weights for {name}, which joins"
            await in_time(self._available.wait(), self._timeout_s, what)
            async with self._lock:
                staged, rank = self._staged, self._ranks[0]
                if not self._available.is_set():
                    continue
                try:
                    if staged is not None:
                        await self._give(member, staged, _Buckets(rank, staged))
                except UserError:
                    raise
                except Exception as error:
                    lives = await _answers(rank)
                    if rank is not self._ranks[0]:
                        continue  # the learners were replaced meanwhile and their files deleted: not the engine's fault
                    if lives:
                        version = 0 if staged is None else staged.policy_version
                        text = f"rollout actor {name} did not take policy version {version}: {_told(error)}"
                        raise InfrastructureError(text) from error
                    self._available.clear()  # until whoever watches over the learner has attached another
                    continue
                self._members[name] = member
                return 0 if staged is None else staged.policy_version

    def leave(self, name: str) -> None:
        """Forget an engine; what is under way for it may fail without a word."""
        self._members.pop(name, None)

    async def _give(self, member: _Member, staged: StagedWeights, buckets: "_Buckets") -> float:
        """Bring one version to one engine; return the seconds for which it paused."""
        version, who = staged.policy_version, f"rollout actor {member.name}"
        if member.updating is not None and not member.updating.done():
            last = asyncio.wait([member.updating])
            await in_time(last, self._update_timeout_s, f"{who} to end an earlier update")
        paths = list(staged.header_paths) if self._way(member) == "shm" else None
        member.holds = None
        if paths is None:
            await in_time(_carry(buckets, member.handle), self._timeout_s, f"policy version {version} to reach {who}")
        update = member.handle.update.remote(version, paths, self._timeout_s)
        member.updating = asyncio.ensure_future(answer(update))
        member.updating.add_done_callback(lambda end: end.cancelled() or end.exception())
        what = f"{who} to load policy version {version}"
        pause_s = await in_time(asyncio.shield(member.updating), self._update_timeout_s, what)
        member.holds = staged
        return float(pause_s)

    @property
    def _update_timeout_s(self) -> float:
        return 2 * self._timeout_s + UPDATE_MARGIN_S

    def _way(self, member: _Member) -> Way:
        here = member.node_id == self._node
        if self._transport == "shm" and not here:
            raise UserError(
                f"weights.transport=shm: rollout actor {member.name} runs on node {member.node_id}, learner rank 0 on "
                f"{self._node}; files cannot cross, use weights.transport=auto"
            )
        return "shm" if here and self._transport != "object_store" else "object_store"

    async def _leave_out(self, failed: Mapping[_Member, BaseException], policy_version: int) -> None:
        """Report engines whose load failed; raise where it is the learner that failed, or no engine is left."""
        if not await _answers(self._ranks[0]):
            raise LearnerLostError(f"learner rank 0 was lost while engines loaded policy version {policy_version}")
        said: dict[str, str] = {}
        for member, error in failed.items():
            if self._members.get(member.name) is not member:
                continue  # it has left meanwhile
            del self._members[member.name]
            reason = f"policy version {policy_version} was not loaded: {_told(error)}"
            if not isinstance(error, LOST) and await _answers(member.handle):
                said[member.name] = reason
            self._on_failed(member.name, reason)
        if said and not self._members:
            last = "; ".join(f"{name}: {reason}" for name, reason in said.items())
            raise InfrastructureError(f"no rollout engine is left to serve policy version {policy_version}: {last}")

    async def _drop_older(self) -> None:
        """Delete what rank 0 keeps of earlier versions: every engine has a later one."""
        what = "the learner to delete weights that no engine needs any more"
        try:
            await in_time(answer(self._ranks[0].drop_older_staged.remote()), self._timeout_s, what)
        except RayActorError as error:
            raise LearnerLostError(f"while waiting for {what}: {reason_of(error)}") from error


class _Buckets:
    """Staged buckets in Ray's object store, read there when they are asked for: the last few, not the whole model.

    An engine that falls behind the others has its buckets read again.
    """

    def __init__(self, rank: Any, staged: StagedWeights) -> None:
        self._rank, self._paths = rank, staged.header_paths
        self._recent: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._paths)

    def reference(self, index: int) -> Any:
        """Return what stands for one bucket until it is there."""
        if index not in self._recent:
            self._recent[index] = self._rank.staged_bucket.remote(self._paths[index])
            while len(self._recent) > SHARED_BUCKETS:
                self._recent.popitem(last=False)
        return self._recent[index]


async def _carry(buckets: _Buckets, handle: Any) -> None:
    """Have one rollout actor stage every bucket, in order; the next is read while it writes one."""
    for index in range(len(buckets)):
        stages = handle.stage.remote(buckets.reference(index))
        if index + 1 < len(buckets):
            buckets.reference(index + 1)
        await stages


async def _answers(handle: Any) -> bool:
    """Ask a Ray actor for a sign of life, which it gives beside its work."""
    try:
        await asyncio.wait_for(answer(handle.heartbeat.remote()), LOOK_TIMEOUT_S)
    except (TimeoutError, RayError, InfrastructureError):
        return False
    return True


def _told(error: BaseException) -> str:
    """Return in one line what went wrong with a call of a Ray actor."""
    if isinstance(error, RayTaskError):
        return reason_of(error.cause)
    return reason_of(error)


async def answer(reference: Awaitable[Any]) -> Any:
    """Turn what a Ray call returns at once into a coroutine."""
    return await reference


async def in_time(work: Awaitable[Any], timeout_s: float, what: str) -> Any:
    """Return what the work returns. Raises WaitTimeoutError, which says what was waited for."""
    try:
        return await asyncio.wait_for(work, timeout_s)
    except TimeoutError:
        raise WaitTimeoutError(what, timeout_s) from None
