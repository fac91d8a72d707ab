"""Estimates of memory for each kind of process, term by term with its arithmetic.

They count what grows with the model and the settings; the runtime itself (libraries, CUDA context, allocator) comes
on top: about 1 to 2 GiB a process.
"""

from dataclasses import dataclass

from launch.shapes import ModelShape
from lwz_ray.config import Config

GIB = 2**30
MIB = 2**20
WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a number."""


@dataclass(frozen=True, slots=True)
class Term:
    """One part of an estimate."""

    name: str
    formula: str
    num_bytes: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one process (on GPUs: one GPU) takes."""

    title: str
    num_processes: int
    terms: tuple[Term, ...]
    limit_bytes: float | None
    """What it may take; null where nothing is known."""
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> float:
        return sum(t.num_bytes for t in self.terms)

    @property
    def fits(self) -> bool:
        return self.limit_bytes is None or self.num_bytes <= self.limit_bytes


def layer_activation_elements(shape: ModelShape) -> int:
    """Return the numbers that one layer keeps per token for its backward pass, attention matrix excluded.

    10 times hidden (inputs and float32 copies of two norms, two residuals), queries, keys, values and the
    attention's output, 4 times the MLP's width (gate, activation, up, product).
    """
    return 10 * shape.hidden + 2 * shape.query_width + 2 * shape.kv_width + 4 * shape.intermediate


def rollout_estimate(config: Config, shape: ModelShape) -> Estimate:
    """Estimate one shard of one engine, with KV cache for `max_num_seqs` sequences of full length or the set size."""
    actors = config.actors
    tp, width = actors.tensor_parallel_size, WIDTHS[actors.dtype]
    kv_shards = min(tp, shape.num_kv_heads)
    per_token = shape.kv_elements_per_token * width / kv_shards
    longest = config.model.max_length_tokens
    weights = Term("weights", f"{shape.num_parameters:,} x {width} B / {tp}", shape.num_parameters * width / tp)
    logits_bytes = actors.max_num_seqs * shape.vocab_size * 4 * 2
    logits = Term("logits", f"{actors.max_num_seqs} sequences x {shape.vocab_size:,} x 4 B x 2", logits_bytes)
    limit = gpu_limit(config, actors.memory_utilization, actors.num_gpus)
    if actors.kv_cache_mib is not None:
        cache = actors.kv_cache_mib * MIB
        kv = Term("KV cache", f"actors.kv_cache_mib={actors.kv_cache_mib:,}", cache)
    else:
        wish = actors.max_num_seqs * longest
        kv = Term(
            "KV cache", f"{actors.max_num_seqs} sequences x {longest:,} tokens x {per_token:,.0f} B", wish * per_token
        )
        cache = kv.num_bytes if limit is None else limit - weights.num_bytes - logits.num_bytes
    held = max(0, int(cache / per_token))
    notes = (
        f"a token's KV takes 2 x {shape.num_layers} layers x {shape.kv_width:,} x {width} B / {kv_shards} = "
        f"{per_token:,.0f} B; "
        f"the cache holds {held:,} tokens = {held / longest:.1f} sequences of {longest:,}",
        *(("it holds not even one sequence of full length: the engine will not start",) if held < longest else ()),
    )
    return Estimate("rollout engine", actors.replicas * tp, (weights, kv, logits), limit, notes)


def scorer_estimate(config: Config, shape: ModelShape) -> Estimate:
    """Estimate one shard of a reward-model replica, which spreads over its GPUs."""
    rewards, writing = config.rewards, config.rewards.writing
    shards, width = max(1, int(rewards.num_gpus)), WIDTHS[writing.dtype]
    n = shape.num_parameters
    terms = [Term("weights", f"{n:,} x {width} B / {shards}", n * width / shards)]
    if writing.engine == "vllm":
        terms.append(
            Term("KV cache", f"rewards.writing.kv_cache_mib={writing.kv_cache_mib:,}", writing.kv_cache_mib * MIB)
        )
    else:
        per_layer, tokens = layer_activation_elements(shape), writing.batch_size * writing.max_length_tokens
        formula = f"{writing.batch_size} texts x {writing.max_length_tokens:,} tokens x {per_layer:,} x {width} B"
        terms.append(Term("one layer's activations", formula, per_layer * tokens * width))
    share = writing.memory_utilization if writing.engine == "vllm" else 1.0
    return Estimate("reward model", rewards.replicas * shards, tuple(terms), gpu_limit(config, share, rewards.num_gpus))


def gpu_limit(config: Config, share: float, num_gpus: float) -> float | None:
    """Return what a process may take of its GPU: `share` of it, or less where several share one."""
    memory = config.cluster.gpu_memory_gib
    if memory is None or num_gpus == 0:
        return None
    return memory * GIB * share * min(1.0, num_gpus)
