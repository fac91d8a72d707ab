"""The plan of a run, without starting anything: placement, batch words, memory with the arithmetic."""

import math
from collections.abc import Mapping
from pathlib import Path

from launch.memory import GIB, Estimate, rollout_estimate, scorer_estimate
from launch.memory_learner import learner_estimate
from launch.placement import Bundle
from launch.preflight_disk import disk_lines
from launch.preflight_placement import plan_lines
from launch.shapes import shape_of
from lwz_ray.config import Config

STAGE_ROOMS: dict[str, tuple[str, ...]] = {
    "rl": ("actors", "rewards", "learners", "critic"),
    "train_rm": ("learners",),
    "curate": ("actors",),
}
"""The rooms that a stage starts."""


def bundles(config: Config) -> dict[str, list[Bundle]]:
    """Return the bundles of each room of the stage: one a Ray actor, kept whole on one node.

    A rollout replica is one bundle, whatever its tensor_parallel_size: its shards never lie on two nodes. The critic's
    ranks ask for the learners' custom resources.
    """
    learners = config.learners
    rooms = {
        "actors": (config.actors.replicas, config.actors, config.actors.resources),
        "rewards": (config.rewards.replicas, config.rewards, config.rewards.resources),
        "learners": (learners.ranks, learners, learners.resources),
        "critic": (config.critic.ranks, config.critic, learners.resources),
    }
    if config.rewards.writing.path is None:
        del rooms["rewards"]
    if not config.algorithm.uses_critic:
        del rooms["critic"]
    return {
        room: [_bundle(one.num_cpus, one.num_gpus, resources) for _ in range(count)]
        for room, (count, one, resources) in rooms.items()
        if room in STAGE_ROOMS[config.stage]
    }


def estimates(config: Config) -> list[Estimate]:
    """Return the memory estimates of every kind of process in the run."""
    policy = shape_of("model.path", config.model.path)
    if config.stage == "train_rm":
        from launch.plan_rm import estimates_rm

        return estimates_rm(config, policy)
    if config.stage == "curate":
        return [rollout_estimate(config, policy)]
    found = [rollout_estimate(config, policy), learner_estimate(config, policy)]
    if config.rewards.writing.path is not None:
        found.insert(1, scorer_estimate(config, shape_of("rewards.writing.path", config.rewards.writing.path)))
    if config.algorithm.uses_critic:
        from launch.plan_critic import critic_estimate

        found.append(critic_estimate(config, policy))
    return found


def plan_text(config: Config) -> str:
    """Return the plan as plain text; the same config gives the same text.

    Raises UserError where a model's shape is not known.
    """
    policy = shape_of("model.path", config.model.path)
    head = [
        f"plan of {config.run.name} (nothing is started)",
        f"policy {config.model.path}: {policy.architecture}, {policy.num_parameters:,} parameters",
        f"run folder {Path(config.run.dir) / config.run.name}",
    ]
    parts = [head, _placement(config), _stage_batch(config), _memory(config), disk_lines(config)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _bundle(cpus: float, gpus: float, resources: Mapping[str, float]) -> Bundle:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **resources}


def _placement(config: Config) -> list[str]:
    lines = ["placement groups (one bundle a Ray actor)"]
    cpus = gpus = 0.0
    for room, items in bundles(config).items():
        one = items[0]
        room_cpus, room_gpus = one["CPU"] * len(items), one.get("GPU", 0.0) * len(items)
        each = ", ".join(f"{name}: {amount:g}" for name, amount in one.items())
        lines.append(f"  {room:<9} {len(items):>3} x {{{each}}} = {room_cpus:g} CPUs, {room_gpus:g} GPUs")
        cpus, gpus = cpus + room_cpus, gpus + room_gpus
    if config.rewards.writing.path is None and "rewards" in STAGE_ROOMS[config.stage]:
        lines.append("  rewards   none: rewards.writing.path is null, length and format need no pool")
    # Sums of decimal fractions: 0.8 + 0.2 + 0.8 is not 1.8 in binary.
    cpus, gpus = round(cpus, 6), round(gpus, 6)
    lines.append(f"  total     {cpus:g} CPUs, {gpus:g} GPUs{_against_cluster(config, gpus)}")
    if config.cluster.num_cpus is not None:
        verdict = "fits" if cpus <= config.cluster.num_cpus else "does not fit"
        lines.append(f"  cluster.num_cpus={config.cluster.num_cpus}: {verdict}")
    return [*lines, *plan_lines(config, bundles(config))]


def _against_cluster(config: Config, gpus: float) -> str:
    cluster = config.cluster
    if gpus == 0:
        return ""
    if cluster.gpus_per_node == 0:
        return "; the cluster has none (cluster.gpus_per_node=0): does not fit"
    widest = max(b.get("GPU", 0.0) for items in bundles(config).values() for b in items)
    if widest > cluster.gpus_per_node:
        return f"; one bundle of {widest:g} GPUs is more than a node's {cluster.gpus_per_node}: does not fit"
    if cluster.nodes is None:
        nodes = math.ceil(gpus / cluster.gpus_per_node)
        return f"; at least {nodes} nodes x {cluster.gpus_per_node} GPUs"
    total = cluster.nodes * cluster.gpus_per_node
    verdict = "fits" if gpus <= total else "does not fit"
    return f"; the cluster has {cluster.nodes} nodes x {cluster.gpus_per_node} = {total} GPUs: {verdict}"


def _stage_batch(config: Config) -> list[str]:
    if config.stage == "train_rm":
        from launch.plan_rm import batch_rm

        return batch_rm(config)
    if config.stage == "curate":
        from launch.plan_curate import batch_curate

        return batch_curate(config)
    return _batch(config)


def _batch(config: Config) -> list[str]:
    samples, longest = config.samples_per_step, config.model.max_length_tokens
    completion = config.sampling.max_tokens
    tokens = samples * (config.data.max_prompt_tokens + completion)
    learners, minibatches = config.learners, config.algorithm.minibatches
    microbatches = math.ceil(tokens / learners.microbatch_tokens)
    in_flight = (config.max_staleness + 1) * config.groups_per_step
    return [
        "batch",
        f"  {config.groups_per_step} groups_per_step x {config.group_size} group_size = {samples} samples a step, "
        f"{config.steps} steps",
        f"  {samples} samples x at most {completion:,} completion tokens = {samples * completion:,} tokens a step; "
        f"with prompts of at most {config.data.max_prompt_tokens:,}: {tokens:,}",
        f"  at that length at least {microbatches} microbatches of {learners.microbatch_tokens:,} tokens "
        f"(longest sample {longest:,}), {microbatches / learners.ranks:.1f} a rank; minibatches {minibatches}",
        f"  max_staleness {config.max_staleness}: at most {in_flight} groups = {in_flight * config.group_size} samples "
        f"in flight; the engines decode {config.actors.replicas * config.actors.max_num_seqs} at once",
        *_critic_lines(config),
    ]


def _critic_lines(config: Config) -> list[str]:
    critic = config.critic
    if not config.algorithm.uses_critic:
        return []
    source = "model.path with a new value head" if critic.path is None else critic.path
    return [f"  critic from {source}: trained alone for the first {critic.warmup_steps} of {config.steps} steps"]


def _memory(config: Config) -> list[str]:
    gpu = config.cluster.gpu_memory_gib
    found = estimates(config)
    lines = ["memory (estimates; the runtime of each process, 1 to 2 GiB, comes on top)"]
    for estimate in found:
        lines.append(f"  {estimate.title}, {estimate.num_processes} processes, each:")
        lines += [f"    {t.name:<24} {t.num_bytes / GIB:>8.2f} GiB = {t.formula}" for t in estimate.terms]
        lines.append(f"    {'sum':<24} {estimate.num_bytes / GIB:>8.2f} GiB{_verdict(estimate, gpu)}")
        lines += [f"    {note}" for note in estimate.notes]
    total = sum(e.num_bytes * e.num_processes for e in found)
    lines.append(f"  all processes together: {total / GIB:.2f} GiB")
    return lines


def _verdict(estimate: Estimate, gpu_memory_gib: float | None) -> str:
    if estimate.limit_bytes is None or gpu_memory_gib is None:
        return " of the host's memory"
    share = estimate.limit_bytes / GIB
    of = "" if share == gpu_memory_gib else f" usable of {gpu_memory_gib:g}"
    return f" of {share:g} GiB{of} on the GPU: {'fits' if estimate.fits else 'does not fit'}"
