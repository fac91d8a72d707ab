"""A learner group on Ray: its settings from the config, its actors, their rendezvous, and who watches over them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from launch.attention_cost import attention_cost
from launch.cluster import end_actors, kill_actor, reason_of, started
from launch.deepspeed_file import read_deepspeed_file
from learners.group import LearnerGroup, Pack
from learners.remote import LearnerActor
from learners.settings import LearnerSettings
from lwz_ray.chat_pairs import ChatPairBatches
from lwz_ray.concurrency import answered
from lwz_ray.config import Config
from lwz_ray.errors import InfrastructureError, LearnerLostError
from lwz_ray.packing import split_over_ranks
from lwz_ray.preferences import split_pairs_over_ranks

LOOK_TIMEOUT_S = 15.0
"""For every rank to say that it lives, when an error of another kind may come of a lost one."""


class LearnerRoom:
    """The Ray actors of one learner group. Each group has a process group of its own.

    A group lives and dies as one: a rank that is lost leaves the others in a collective that never ends, and took its
    shard of the weights with it. So `restart` kills and replaces them all, in the same bundles.
    """

    def __init__(self, name: str, settings: LearnerSettings, options: Sequence[Mapping[str, Any]], config: Config):
        """name: what error messages call it; options: Ray's, of each rank.

        Raises UserError where the model's sizes cannot be read.
        """
        self.handles: list[Any] = []
        self.nodes: list[str] = []
        """The ranks' node ids, after `start`."""
        self.pids: list[int] = []
        """The ranks' processes, each on its node, after `start`."""
        self.lost = asyncio.Event()
        """Set when a rank is found dead or frozen, until `kill`; see `loss`."""
        self.loss: LearnerLostError | None = None
        self._name, self._settings, self._options = name, settings, [dict(o) for o in options]
        self._room, self._failures = config.learners, config.failures
        self._pack = _pack_of(config)
        self._watching: list[asyncio.Task[None]] = []

    def create(self) -> None:
        """Create the ranks' Ray actors; `start` waits for them."""
        actor: Any = LearnerActor  # ray.remote with arguments returns an actor class, its types say the plain one
        self.handles = [actor.options(**options).remote(self._settings) for options in self._options]

    async def start(self) -> None:
        """Let the ranks meet at rank 0 and load the model, then watch over them.

        Raises WaitTimeoutError or a rank's own error.
        """
        wait_s = self._room.start_timeout_s
        (address,) = await started([self.handles[0].rendezvous.remote()], f"{self._name} rank 0", wait_s)
        calls = [h.start.remote(rank, len(self.handles), address) for rank, h in enumerate(self.handles)]
        self.nodes = await started(calls, f"{self._name} ranks to join and load the model", wait_s)
        beats = [h.heartbeat.remote() for h in self.handles]
        self.pids = await started(beats, f"{self._name} ranks to say that they live", wait_s)
        self._watching = [asyncio.create_task(self._watch(rank)) for rank in range(len(self.handles))]

    async def restart(self) -> None:
        """Kill every rank and start as many anew, with fresh weights: the caller loads a checkpoint.

        They go to the same bundles, which Ray moves where a node is gone. Raises LearnerLostError where they do not
        come up for a reason that may pass.
        """
        await self.kill()
        self.create()
        try:
            await self.start()
        except InfrastructureError as error:
            raise LearnerLostError(f"the {self._name} group did not start again: {error}") from error

    async def kill(self) -> None:
        """End every rank at once, whatever it does; its pending calls fail."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._watching = []
        for handle in self.handles:
            kill_actor(handle)
        self.handles, self.loss = [], None
        self.lost.clear()

    async def close(self) -> None:
        """Let the ranks close what they hold, then end them; never raises."""
        for task in self._watching:
            task.cancel()
        await end_actors(self.handles)

    def group(self) -> LearnerGroup:
        """Return the group as the loop calls it; of the present ranks, so a restart needs another."""
        room, ranks = self._room, [_Rank(self, rank) for rank in range(len(self.handles))]
        return LearnerGroup(
            ranks, room.microbatch_tokens, room.step_timeout_s, self._pack, room.sequence_parallel, self._name
        )

    async def look(self) -> LearnerLostError | None:
        """Ask every rank for a sign of life now; return what was found, None where all live."""
        if self.loss is None:
            beats = [asyncio.ensure_future(_answer(h.heartbeat.remote())) for h in self.handles]
            if beats:
                await asyncio.wait(beats, timeout=min(LOOK_TIMEOUT_S, self._failures.heartbeat_timeout_s))
            for rank, beat in enumerate(beats):
                if not beat.done():
                    beat.cancel()
                elif (error := beat.exception()) is not None:
                    self.lose(rank, reason_of(error))
        return self.loss

    def lose(self, rank: int, reason: str) -> LearnerLostError:
        """Take note of a rank that is gone; return the error that says so."""
        error = LearnerLostError(f"{self._name} rank {rank} was lost: {reason}")
        if self.loss is None:
            self.loss = error
            self.lost.set()
        return error

    async def _watch(self, rank: int) -> None:
        """Ask a rank for a sign of life again and again, beside its work; kill it where it gives none."""
        every_s, timeout_s = self._failures.heartbeat_every_s, self._failures.heartbeat_timeout_s
        handle, seen = self.handles[rank], time.monotonic()
        while True:
            await asyncio.sleep(every_s)
            try:
                await answered(_answer(handle.heartbeat.remote()), timeout_s)
                seen = time.monotonic()
                continue
            except TimeoutError:
                pass
            except ActorUnavailableError:  # the way there is broken; it may come back
                if time.monotonic() - seen < timeout_s:
                    continue
            except Exception as error:  # whatever keeps it from answering, it cannot be reached
                self.lose(rank, reason_of(error))
                return
            self.lose(rank, f"no sign of life for {timeout_s:g} s (failures.heartbeat_timeout_s), so it was killed")
            kill_actor(handle)
            return


class _Rank:
    """A LearnerActor handle as `LearnerGroup` calls it; a death of its process is a LearnerLostError."""

    def __init__(self, room: LearnerRoom, rank: int) -> None:
        self._room, self._rank = room, rank
        handle = room.handles[rank]
        self.train = self._through(handle.train)
        self.predict = self._through(handle.predict)
        self.annotate = self._through(handle.annotate)
        self.refresh_reference = self._through(handle.refresh_reference)
        self.save = self._through(handle.save)
        self.finish_save = self._through(handle.finish_save)
        self.load = self._through(handle.load)
        self.export = self._through(handle.export)

    def _through(self, method: Any) -> Callable[..., Awaitable[Any]]:
        # The call is made at once and only its answer awaited: every rank must see the same order of calls.
        return lambda *arguments: self._await(method.remote(*arguments))

    async def _await(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except RayTaskError:  # what the rank itself raised
            raise
        except RayError as error:
            raise self._room.lose(self._rank, reason_of(error)) from error


async def _answer(reference: Awaitable[Any]) -> Any:
    return await reference


def _pack_of(config: Config) -> Pack:
    """Return how the stage's items become balanced microbatches."""
    if config.stage == "train_rm":
        return split_pairs_over_ranks
    return partial(split_over_ranks, attention_cost=attention_cost(config))


def learner_settings(config: Config, staging: tuple[str, ...], model_bytes: int) -> LearnerSettings:
    """Return every learner rank's settings.

    staging: folders for published weights; model_bytes: what they must hold.
    """
    room, optimizer = config.learners, config.optimizer
    objective, lr_schedule, sources = _objective(config)
    return LearnerSettings(
        model_path=config.model.path,
        trust_remote_code=config.model.trust_remote_code,
        device=room.device,
        dtype=room.dtype,
        publish_dtype=config.actors.dtype,
        threads=room.threads,
        temperature=config.sampling.temperature,
        logprob_chunk_tokens=room.logprob_chunk_tokens,
        activation_checkpointing=room.activation_checkpointing,
        reshard_after_forward=room.reshard_after_forward,
        lr=optimizer.lr,
        betas=(optimizer.betas[0], optimizer.betas[1]),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        max_grad_norm=optimizer.max_grad_norm,
        bucket_bytes=config.weights.bucket_mib * 2**20,
        staging_candidates=staging,
        staging_bytes=model_bytes,
        timeout_s=room.step_timeout_s,
        seed=config.seed,
        algorithm=config.algorithm if objective == "policy" else None,
        lora=config.lora if config.lora.rank else None,
        cpu_offload=room.cpu_offload,
        sequence_parallel=room.sequence_parallel,
        attention=room.attention,
        liger=room.liger,
        deepspeed_config=read_deepspeed_file(config),
        objective=objective,
        backend=room.backend,
        zero_stage=room.zero_stage,
        center_coefficient=config.preference.center_coefficient,
        lr_schedule=lr_schedule,
        total_steps=0 if objective == "policy" else config.steps,
        sources=sources,
    )


def _objective(config: Config) -> tuple[str, str, tuple[str, ...]]:
    """Return what the stage's learners are trained on, how the rate falls, and the names of the data's sources."""
    if config.stage == "train_rm":
        return "preference", config.preference.lr_schedule, ()
    if config.stage == "pretrain":
        return "language_model", config.corpus.lr_schedule, tuple(config.corpus.sources)
    if config.stage == "sft":
        return "language_model", config.sft.lr_schedule, ChatPairBatches.names
    return "policy", "constant", ()


def critic_settings(config: Config, staging: tuple[str, ...]) -> LearnerSettings:
    """Return every critic rank's settings: the learners', with a network, rate and clip of its own.

    It is never published, so nothing is staged for it, and every weight of it is trained.
    """
    critic = config.critic
    return replace(
        learner_settings(config, staging, model_bytes=0),
        objective="critic",
        model_path=config.model.path if critic.path is None else critic.path,
        lr=critic.lr,
        value_clip=critic.value_clip,
        lora=None,
    )
