"""The plan of a run, without starting anything: placement, batch words, memory with the arithmetic."""

import math
from collections.abc import Mapping
from pathlib import Path

from launch.memory import GIB, Estimate
from launch.placement import Bundle
from launch.preflight_disk import disk_lines
from launch.preflight_placement import plan_lines
from launch.shapes import shape_of
from launch.stage_table import STAGES, reads_policy
from lwz_ray.config import Config


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
    if not reads_policy(config) and config.evaluate.judge_path is None:
        del rooms["actors"]
    return {
        room: [_bundle(one.num_cpus, one.num_gpus, resources) for _ in range(count)]
        for room, (count, one, resources) in rooms.items()
        if room in STAGES[config.stage].rooms
    }


def estimates(config: Config) -> list[Estimate]:
    """Return the memory estimates of every kind of process in the run."""
    shape = shape_of("model.path", config.model.path) if reads_policy(config) else None
    return STAGES[config.stage].estimates()(config, shape)


def plan_text(config: Config) -> str:
    """Return the plan as plain text; the same config gives the same text.

    Raises UserError where a model's shape is not known.
    """
    head = [f"plan of {config.run.name} (nothing is started)"]
    if reads_policy(config):
        policy = shape_of("model.path", config.model.path)
        head.append(f"policy {config.model.path}: {policy.architecture}, {policy.num_parameters:,} parameters")
    head.append(f"run folder {Path(config.run.dir) / config.run.name}")
    parts = [head, _placement(config), STAGES[config.stage].batch()(config), _memory(config), disk_lines(config)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _bundle(cpus: float, gpus: float, resources: Mapping[str, float]) -> Bundle:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **resources}


def _placement(config: Config) -> list[str]:
    if not bundles(config):
        return []
    lines = ["placement groups (one bundle a Ray actor)"]
    cpus = gpus = 0.0
    for room, items in bundles(config).items():
        one = items[0]
        room_cpus, room_gpus = one["CPU"] * len(items), one.get("GPU", 0.0) * len(items)
        each = ", ".join(f"{name}: {amount:g}" for name, amount in one.items())
        lines.append(f"  {room:<9} {len(items):>3} x {{{each}}} = {room_cpus:g} CPUs, {room_gpus:g} GPUs")
        cpus, gpus = cpus + room_cpus, gpus + room_gpus
    if config.rewards.writing.path is None and "rewards" in STAGES[config.stage].rooms:
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


def _memory(config: Config) -> list[str]:
    gpu = config.cluster.gpu_memory_gib
    found = estimates(config)
    if not found:
        return []
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
