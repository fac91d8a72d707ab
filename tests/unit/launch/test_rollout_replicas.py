"""How a started rollout actor comes to serve; its Ray actor is in this process."""

import asyncio
from typing import Any

from actors.load import EngineLoad
from launch.places import Place, Places
from launch.replica import Replica
from launch.rollout_replicas import RolloutReplicas
from lwz_ray.failures import FailureLog


class Method:
    """A method of a Ray actor."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def remote(self) -> Any:
        await asyncio.sleep(0.0)
        return self._answer


class Handle:
    heartbeat = Method(EngineLoad(0, 0, 0, 0.0, 0, 0, 4096))
    interrupt = Method(None)
    stream = pieces = Method(None)


async def test_an_engine_serves_from_the_moment_at_which_it_takes_part_in_loads(make_config):
    """Else a load that fails meanwhile would leave it out of later ones, and nobody would replace it."""
    config, seen = make_config(), []
    replicas = RolloutReplicas(config, 0, Places(config), FailureLog({}))

    class Weights:
        async def join(self, name: str, handle: Any, node_id: str) -> int:
            asyncio.get_running_loop().call_soon(lambda: seen.append(replicas.pool.workers))
            return 0

        def leave(self, name: str) -> None: ...

    await replicas.open(Weights())
    await replicas.enter(Replica("1", 0, Place("actors"), Handle()))
    await asyncio.sleep(0.0)
    assert seen == [("1",)]
    await replicas.pool.close()
