"""A learner group on Ray: its settings from the config, its actors, their rendezvous, and the calls of a rank."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from launch.attention_cost import attention_cost
from launch.cluster import started
from launch.deepspeed_file import read_deepspeed_file
from learners.group import LearnerGroup, Pack
from learners.settings import LearnerSettings
from lwz_ray.config import Config
from lwz_ray.packing import split_over_ranks
from lwz_ray.preferences import split_pairs_over_ranks


class LearnerRoom:
    """The Ray actors of one learner group, constructed elsewhere; each group has a process group of its own."""

    def __init__(self, name: str, handles: Sequence[Any], config: Config) -> None:
        """name: what error messages call it. Raises UserError where the model's sizes cannot be read."""
        self.handles = list(handles)
        self.nodes: list[str] = []
        """The ranks' node ids, after `start`."""
        self._name = name
        self._room = config.learners
        self._pack = _pack_of(config)

    async def start(self) -> None:
        """Let the ranks meet at rank 0 and load the model. Raises WaitTimeoutError or a rank's own error."""
        wait_s = self._room.start_timeout_s
        (address,) = await started([self.handles[0].rendezvous.remote()], f"{self._name} rank 0", wait_s)
        calls = [h.start.remote(rank, len(self.handles), address) for rank, h in enumerate(self.handles)]
        self.nodes = await started(calls, f"{self._name} ranks to join and load the model", wait_s)

    def group(self) -> LearnerGroup:
        """Return the group as the loop calls it."""
        room, ranks = self._room, [_Rank(h) for h in self.handles]
        return LearnerGroup(
            ranks, room.microbatch_tokens, room.step_timeout_s, self._pack, room.sequence_parallel, self._name
        )


def _pack_of(config: Config) -> Pack:
    """Return how the stage's items become balanced microbatches."""
    if config.stage == "train_rm":
        return split_pairs_over_ranks
    return partial(split_over_ranks, attention_cost=attention_cost(config))


class _Rank:
    """A LearnerActor handle as `LearnerGroup` calls it."""

    def __init__(self, handle: Any) -> None:
        self.train = handle.train.remote
        self.predict = handle.predict.remote
        self.annotate = handle.annotate.remote
        self.refresh_reference = handle.refresh_reference.remote
        self.save = handle.save.remote
        self.finish_save = handle.finish_save.remote
        self.load = handle.load.remote
        self.export = handle.export.remote


def learner_settings(config: Config, staging: tuple[str, ...], model_bytes: int) -> LearnerSettings:
    """Return every learner rank's settings.

    staging: folders for published weights; model_bytes: what they must hold.
    """
    room, optimizer = config.learners, config.optimizer
    preference = config.stage == "train_rm"
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
        algorithm=None if preference else config.algorithm,
        lora=config.lora if config.lora.rank else None,
        cpu_offload=room.cpu_offload,
        sequence_parallel=room.sequence_parallel,
        attention=room.attention,
        liger=room.liger,
        deepspeed_config=read_deepspeed_file(config),
        objective="preference" if preference else "policy",
        backend=room.backend,
        zero_stage=room.zero_stage,
        center_coefficient=config.preference.center_coefficient,
        lr_schedule=config.preference.lr_schedule if preference else "constant",
        total_steps=config.steps if preference else 0,
    )


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
