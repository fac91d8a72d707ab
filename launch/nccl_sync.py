"""Weights over NCCL: the learner's rank 0 drives vLLM's update round through the rollout actors' handles."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import ray

from lwz_ray.errors import WaitTimeoutError


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
        self._all([h.begin_update.remote(self.policy_version) for h in self._rollouts])

    def update_weights(self, update_info: Any) -> None:
        self._all([h.receive_update.remote(update_info, self.policy_version, self._timeout_s) for h in self._rollouts])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all([h.end_update.remote(self.policy_version) for h in self._rollouts])

    def _all(self, calls: list[Any]) -> None:
        ray.get(calls, timeout=self._timeout_s)


class NcclWeightSync:
    """Implements `WeightSync` with vLLM's nccl backend on both sides."""

    mode = "nccl"

    def __init__(self, ranks: Sequence[Any], timeout_s: float) -> None:
        self._ranks = list(ranks)
        self._timeout_s = timeout_s

    @classmethod
    async def open(
        cls, ranks: Sequence[Any], rollouts: Sequence[Any], workers_per_engine: int, timeout_s: float
    ) -> "NcclWeightSync":
        """Form the group of rank 0 and every engine worker."""
        try:
            host, port = await asyncio.wait_for(_once(ranks[0].free_address.remote()), timeout_s)
        except TimeoutError:
            raise WaitTimeoutError("learner rank 0 to name a port for the NCCL group", timeout_s) from None
        client = RolloutClient(rollouts, workers_per_engine, timeout_s)
        size = 1 + workers_per_engine * len(rollouts)
        sync = cls(ranks, timeout_s)
        calls = [rank.open_nccl.remote(client, host, port, size) for rank in ranks]
        await sync._wait(calls, "the NCCL group of learner and engines to form")
        return sync

    async def publish(self, policy_version: int) -> dict[str, float]:
        """Return the seconds of the whole round."""
        started = time.monotonic()
        calls = [rank.send_nccl.remote(policy_version) for rank in self._ranks]
        await self._wait(calls, f"policy version {policy_version} to cross NCCL")
        return {"weights/publish_s": time.monotonic() - started}

    async def _wait(self, calls: Sequence[Any], what: str) -> None:
        try:
            await asyncio.wait_for(asyncio.gather(*calls), self._timeout_s)
        except TimeoutError:
            raise WaitTimeoutError(what, self._timeout_s) from None


async def _once(ref: Any) -> Any:
    return await ref
