"""Weights over NCCL: the learner's rank 0 drives vLLM's update round through the rollout actors' handles.

The broadcast goes from the learner's memory to the engines', so nothing is staged and `stage` does it all. An engine
that joins gets a group of transfer that has it as a member: at once where the learner's weights are still those that
were sent last, else with the next `stage`. Not run on GPUs yet.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from launch.cluster import reason_of
from launch.weight_sync import OnFailed, answer, in_time
from lwz_ray.errors import InfrastructureError, LearnerLostError

LOOK_TIMEOUT_S = 15.0
"""For a rollout actor or learner rank to say that it lives, when a broadcast has failed."""


class RolloutClient:
    """vLLM's weight-sync client over RolloutActor handles; lives in the learner's rank 0. Every call has a timeout."""

    def __init__(self, rollouts: Sequence[Any], workers_per_engine: int, timeout_s: float) -> None:
        self._rollouts = list(rollouts)
        self._workers_per_engine = workers_per_engine
        self._timeout_s = timeout_s
        self.policy_version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Give each engine its own ranks in the group: the sender is 0, engine i starts at 1 + i * workers."""
        offsets = [1 + i * self._workers_per_engine for i in range(len(self._rollouts))]
        self._all(
            [
                h.init_weight_transfer_engine.remote({**init_info, "rank_offset": offset})
                for h, offset in zip(self._rollouts, offsets, strict=True)
            ]
        )

    def start_weight_update(self) -> None:
        self._all([h.begin_update.remote(self.policy_version, self._timeout_s) for h in self._rollouts])

    def update_weights(self, update_info: Any) -> None:
        self._all([h.receive_update.remote(update_info, self.policy_version, self._timeout_s) for h in self._rollouts])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all([h.end_update.remote(self.policy_version, self._timeout_s) for h in self._rollouts])

    def _all(self, calls: list[Any]) -> None:
        ray.get(calls, timeout=self._timeout_s)


class NcclWeightSync:
    """Implements `WeightSync` with vLLM's nccl backend on both sides; the same calls as `StagedWeightSync`."""

    def __init__(self, ranks: Sequence[Any], workers_per_engine: int, timeout_s: float, on_failed: OnFailed) -> None:
        """ranks: handles of LearnerActor; workers_per_engine: actors.tensor_parallel_size; on_failed(name, reason)."""
        self._ranks, self._workers = list(ranks), workers_per_engine
        self._timeout_s, self._on_failed = timeout_s, on_failed
        self._members: dict[str, Any] = {}
        self._grouped: tuple[str, ...] = ()
        """Members of the transfer group as it stands."""
        self._version = 0
        """Sent last."""
        self._lock = asyncio.Lock()
        self._sent = asyncio.Event()

    def attach_learners(self, ranks: Sequence[Any], node_id: str) -> None:
        """Form the next group with these ranks; their weights come with the next `stage`."""
        self._ranks, self._grouped = list(ranks), ()

    async def join(self, name: str, handle: Any, node_id: str) -> int:
        """Make an engine a member and wait until it has the newest weights; return their version.

        Raises WaitTimeoutError where the next `stage` does not come in time, InfrastructureError where it failed here.
        """
        async with self._lock:
            self._members[name] = handle
            if self._version == 0:
                return 0  # the model folder's weights, with which it started
            if await self._send(self._version, only_unchanged=True):
                return self._version
            sent = self._sent
        await in_time(sent.wait(), self._timeout_s, f"the next weights for {name}, which joins")
        if self._members.get(name) is not handle:
            raise InfrastructureError(f"rollout actor {name} was left out when policy version {self._version} was sent")
        return self._version

    def leave(self, name: str) -> None:
        """Leave an engine out of the next group."""
        self._members.pop(name, None)

    async def stage(self, policy_version: int) -> dict[str, float]:
        """Broadcast the learner's weights to every member. Engines that do not answer are reported and left out.

        Raises LearnerLostError, or InfrastructureError where no engine is left or all answer and it fails all the same.
        """
        started = time.monotonic()
        async with self._lock:
            while self._members:
                try:
                    await self._send(policy_version)
                    break
                except Exception as error:
                    await self._leave_out_the_dead(policy_version, error)
            self._version = policy_version
            self._sent.set()
            self._sent = asyncio.Event()
        return {"weights/stage_s": time.monotonic() - started}

    async def load(self, policy_version: int) -> dict[str, float]:
        """Return at once: the engines have what was staged."""
        if policy_version != self._version:
            raise RuntimeError(f"load of policy version {policy_version}, sent is {self._version}")
        return {}

    async def _send(self, policy_version: int, only_unchanged: bool = False) -> bool:
        names = tuple(self._members)
        if names != self._grouped:
            self._grouped = ()
            await self._form_group()
            self._grouped = names
        calls = [rank.send_nccl.remote(policy_version, only_unchanged) for rank in self._ranks]
        what = f"policy version {policy_version} to cross NCCL"
        return (await in_time(asyncio.gather(*calls), self._timeout_s, what))[0]

    async def _form_group(self) -> None:
        """Let rank 0 and every engine's workers meet."""
        address = self._ranks[0].free_address.remote()
        host, port = await in_time(answer(address), self._timeout_s, "a free port on the learner's host")
        handles = list(self._members.values())
        client = RolloutClient(handles, self._workers, self._timeout_s)
        size = 1 + self._workers * len(handles)
        calls = [rank.open_nccl.remote(client, host, port, size) for rank in self._ranks]
        await in_time(asyncio.gather(*calls), self._timeout_s, "the NCCL group of learner and engines to form")

    async def _leave_out_the_dead(self, policy_version: int, error: Exception) -> None:
        self._grouped = ()
        dead_rank = [reason for rank in self._ranks if (reason := await _silence(rank))]
        if dead_rank:
            raise LearnerLostError(f"while policy version {policy_version} crossed NCCL: {dead_rank[0]}") from error
        dead = {name: reason for name, h in list(self._members.items()) if (reason := await _silence(h))}
        for name, reason in dead.items():
            self._members.pop(name, None)
            self._on_failed(name, f"policy version {policy_version} was not loaded: {reason}")
        if not dead or not self._members:
            raise InfrastructureError(f"policy version {policy_version} did not cross NCCL: {error}") from error


async def _silence(handle: Any) -> str | None:
    """Return why a Ray actor gives no sign of life; None where it does."""
    try:
        await asyncio.wait_for(answer(handle.heartbeat.remote()), LOOK_TIMEOUT_S)
    except TimeoutError:
        return f"no sign of life in {LOOK_TIMEOUT_S:g} s"
    except (RayError, InfrastructureError) as error:
        return reason_of(error)
    return None
