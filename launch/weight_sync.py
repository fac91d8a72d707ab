"""Weights from the learner group to every rollout actor, in flight: knows both rooms, moves nothing itself.

shm           rank 0 stages buckets in a folder of this host ──▶ every rollout actor loads them from there
object_store  rank 0 streams buckets into Ray's object store ──▶ each rollout actor stages them on its host
nccl          vLLM's own trainer engine on rank 0 broadcasts to the engines' workers (see nccl_sync.py)
"""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any

from lwz_ray.errors import WaitTimeoutError


class StagedWeightSync:
    """Implements `WeightSync` over Ray handles, for modes shm and object_store."""

    def __init__(self, ranks: Sequence[Any], rollouts: Sequence[Any], mode: str, timeout_s: float) -> None:
        """ranks, rollouts: handles of LearnerActor and RolloutActor. timeout_s: for a whole publication."""
        self._ranks = list(ranks)
        self._rollouts = list(rollouts)
        self.mode = mode
        self._timeout_s = timeout_s

    async def publish(self, policy_version: int) -> dict[str, float]:
        """Return timings once every rollout actor serves this version."""
        started = time.monotonic()
        if self.mode == "shm":
            paths = await self._wait(self._stage_on_host(policy_version), "the learner to stage its weights")
        else:
            await self._wait(self._stream(policy_version), "weights to cross the object store")
            paths = None
        staged = time.monotonic()
        updates = [r.update.remote(policy_version, paths, self._timeout_s) for r in self._rollouts]
        pauses = await self._wait(_gather(updates), f"rollout actors to load policy version {policy_version}")
        if self.mode == "shm":
            await self._wait(_gather([self._ranks[0].clear_staged.remote()]), "staged weights to be cleared")
        return {
            "weights/stage_s": staged - started,
            "weights/pause_s": float(max(pauses)),
            "weights/publish_s": time.monotonic() - started,
        }

    async def _stage_on_host(self, policy_version: int) -> list[str]:
        results = await _gather([rank.stage_weights.remote(policy_version) for rank in self._ranks])
        return results[0]

    async def _stream(self, policy_version: int) -> None:
        """Rank 0 yields buckets; each goes to every rollout actor before the next is fetched."""
        others = [rank.stage_weights.remote(policy_version) for rank in self._ranks[1:]]
        # Ray would let the sender run ahead until the object store holds the whole model.
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
        stream = self._ranks[0].stream_buckets.options(**options).remote(policy_version)
        async for bucket in stream:
            await _gather([r.stage.remote(bucket) for r in self._rollouts])
        await _gather(others)

    async def _wait(self, work: Awaitable[Any], what: str) -> Any:
        try:
            return await asyncio.wait_for(work, self._timeout_s + 5.0)
        except TimeoutError:
            raise WaitTimeoutError(what, self._timeout_s + 5.0) from None


async def _gather(refs: Sequence[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*refs))
