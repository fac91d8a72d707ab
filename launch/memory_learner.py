"""The memory of one learner rank: what it always holds, and the most that any moment of a step adds to it.

A step passes through moments that do not overlap: the logits of a chunk are gone when a layer is recomputed, and
activations are gone when the optimizer steps. The estimate is what is held all the time plus the terms of the greatest
moment; the others are told in a note.
"""

import math
from dataclasses import dataclass

from launch.memory import GIB, MIB, WIDTHS, Estimate, Term, gpu_limit, layer_activation_elements
from launch.shapes import ModelShape, lora_parameters
from lwz_ray.config import Config

DEEPSPEED_BUCKET = 50_000_000
"""Elements that DeepSpeed reduces at once; `learners.deepspeed` sets it."""
DEEPSPEED_LIVE = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered at once: DeepSpeed's default."""


@dataclass(frozen=True, slots=True)
class Rank:
    """The numbers that every term is made of."""

    config: Config
    shape: ModelShape
    tokens: int
    """Of a microbatch, on this rank."""
    width: int
    """Bytes of a number in the compute dtype."""
    total: int
    """Parameters of the model, without adapters."""
    trained: int
    """Parameters with gradient and moments: of the adapters, or of the model."""
    microbatches: int
    """Of one rank between two optimizer steps."""

    @property
    def ranks(self) -> int:
        return self.config.learners.ranks

    @property
    def zero(self) -> int:
        """Return DeepSpeed's stage; 0 with FSDP."""
        return self.config.learners.zero_stage if self.config.learners.backend == "deepspeed" else 0

    @property
    def has_adapters(self) -> bool:
        return self.trained != self.total

    @property
    def offloads(self) -> bool:
        """Tell whether state lies in the host's memory while something else has its own."""
        return self.config.learners.cpu_offload and self.config.learners.device == "cuda"

    @property
    def copy_width(self) -> int:
        """Return the bytes of a number's copy in the compute dtype, which float32 does without."""
        return self.width if self.width < 4 else 0

    @property
    def is_policy(self) -> bool:
        """Tell whether the head is the vocabulary's; critics and reward models have a scalar one, unpublished."""
        return self.shape.architecture.endswith("ForCausalLM")


def learner_estimate(config: Config, shape: ModelShape) -> Estimate:
    """Estimate one learner rank. shape: of a policy, or of a network with a scalar head."""
    rank = _rank(config, shape)
    held, moments = rank_terms(rank)
    totals = {name: sum(t.num_bytes for t in terms) for name, terms in moments.items()}
    greatest = max(totals, key=lambda name: totals[name])
    rest = ", ".join(f"{name} {total / GIB:.2f} GiB" for name, total in totals.items() if name != greatest)
    notes = [f"greatest at the {greatest}, which adds {totals[greatest] / GIB:.2f} GiB; in its place: {rest}"]
    if rank.offloads:
        host = sum(t.num_bytes for t in state_terms(rank))
        notes.append(f"learners.cpu_offload=true: {host / GIB:.2f} GiB of state lie in the host's memory instead")
    copy = checkpoint_term(rank)
    if copy is not None and config.learners.device == "cuda":
        notes.append(f"{copy.name}: {copy.num_bytes / GIB:.2f} GiB of the host's memory = {copy.formula}")
    stored = shape.num_parameters * 2
    notes.append(f"as it starts, it reads the model into the host's memory: {stored / GIB:.2f} GiB in 16 bits")
    limit = gpu_limit(config, 1.0, config.learners.num_gpus)
    return Estimate("learner rank", config.learners.ranks, (*held, *moments[greatest]), limit, tuple(notes))


def rank_terms(rank: Rank) -> tuple[list[Term], dict[str, list[Term]]]:
    """Return the terms that are held throughout a step, and those of each moment."""
    held = [*weight_terms(rank), *([] if rank.offloads else state_terms(rank))]
    copy = checkpoint_term(rank)
    if copy is not None and rank.config.learners.device == "cpu":
        held.append(copy)
    inside = [*_gradients_so_far(rank), *_kept(rank), *_gathered(rank)]
    moments = {
        "loss's forward": [*inside, *_loss_forward(rank)],
        "loss's backward": [*inside, *_loss_backward(rank)],
        "last layer's backward": [*inside, *_layer_backward(rank)],
        "end of backward": [*_gradients(rank), *_end_of_backward(rank)],
        "optimizer's step": [*_reduced_gradients(rank), *_optimizer_step(rank)],
        "publication": _publication(rank),
    }
    return held, {name: terms for name, terms in moments.items() if terms}


def _rank(config: Config, shape: ModelShape) -> Rank:
    learners, n = config.learners, shape.num_parameters
    adapters = 0
    if config.lora.rank and shape.architecture.endswith("ForCausalLM"):
        adapters = lora_parameters(shape, config.lora.rank, config.lora.target_modules)
    tokens = _texts_per_optimizer_step(config) * config.model.max_length_tokens
    rows = learners.ranks // learners.sequence_parallel
    return Rank(
        config,
        shape,
        math.ceil(learners.microbatch_tokens / learners.sequence_parallel),
        WIDTHS[learners.dtype],
        n,
        adapters or n,
        math.ceil(tokens / learners.microbatch_tokens / rows),
    )


def _texts_per_optimizer_step(config: Config) -> float:
    """Return how many texts of at most model.max_length_tokens one optimizer step takes."""
    by_stage = {
        "train_rm": 2 * config.preference.pairs_per_step,
        "pretrain": config.corpus.sequences_per_step,
        "sft": config.sft.samples_per_step,
    }
    return by_stage.get(config.stage, config.samples_per_step / config.algorithm.minibatches)


def weight_terms(rank: Rank) -> list[Term]:
    """Return the weights that forward passes read and that stay, where they are not the master weights themselves."""
    n, width, ranks = rank.total, rank.width, rank.ranks
    if rank.zero in (1, 2):
        return [Term("weights", f"{n:,} x {width} B, whole on every rank", n * width)]
    if rank.zero == 3 or rank.has_adapters:
        return [Term("weights", f"{n:,} x {width} B / {ranks}", n * width / ranks)]
    return []


def state_terms(rank: Rank) -> list[Term]:
    """Return what lives as long as the rank and `learners.cpu_offload` moves: master weights, moments, the reference.

    ZeRO-1 (in 16 bits) and ZeRO-3 keep their gradients' buffers too, where the others free gradients with each step.
    """
    trained, ranks = rank.trained, rank.ranks
    terms = [
        Term("master weights", f"{trained:,} x 4 B / {ranks}", trained * 4 / ranks),
        Term("Adam moments", f"{trained:,} x 8 B / {ranks}", trained * 8 / ranks),
    ]
    if rank.zero == 1 and rank.copy_width:
        terms.append(Term("gradients", f"{trained:,} x 4 B, whole on every rank", trained * 4))
    if rank.zero == 3:
        terms.append(Term("gradients", f"{trained:,} x 4 B / {ranks}", trained * 4 / ranks))
        terms.append(Term("gradient bucket", f"{DEEPSPEED_BUCKET:,} x 4 B", DEEPSPEED_BUCKET * 4))
    if rank.is_policy and rank.config.stage == "rl" and rank.config.algorithm.uses_reference:
        terms.append(Term("reference", f"{trained:,} x 4 B / {ranks}", trained * 4 / ranks))
    return terms


def checkpoint_term(rank: Rank) -> Term | None:
    """Return the copy of a checkpoint that is written while training goes on; None where nothing is copied."""
    if rank.zero or not rank.config.run.checkpoint_async:
        return None
    trained, ranks = rank.trained, rank.ranks
    return Term("checkpoint being written", f"{trained:,} x 12 B / {ranks}", trained * 12 / ranks)


def _gradients(rank: Rank) -> list[Term]:
    """Return the gradients at the end of a backward pass; but for ZeRO-1 they are reduced with every microbatch."""
    trained = rank.trained
    if rank.zero == 1:
        each = rank.width
        return [Term("module's gradients", f"{trained:,} x {each} B, whole on every rank", trained * each)]
    return _reduced_gradients(rank)


def _reduced_gradients(rank: Rank) -> list[Term]:
    """Return the gradients that the optimizer's step finds, where `state_terms` does not have them."""
    if rank.zero == 1 and rank.copy_width:
        return _gradients(rank)
    if rank.zero == 3 or rank.offloads:
        return []
    return [Term("gradients", f"{rank.trained:,} x 4 B / {rank.ranks}", rank.trained * 4 / rank.ranks)]


def _gradients_so_far(rank: Rank) -> list[Term]:
    """Return the gradients that earlier microbatches left."""
    return _gradients(rank) if rank.microbatches > 1 else []


def _kept(rank: Rank) -> list[Term]:
    """Return what the layers keep for their backward pass."""
    layers, tokens, hidden, width = rank.shape.num_layers, rank.tokens, rank.shape.hidden, rank.width
    if rank.config.learners.activation_checkpointing:
        formula = f"{layers} layers x {tokens:,} tokens x {hidden:,} x {width} B"
        return [Term("layer inputs", formula, layers * hidden * tokens * width)]
    per_layer = layer_activation_elements(rank.shape)
    formula = f"{layers} layers x {tokens:,} tokens x {per_layer:,} x {width} B"
    return [Term("activations", formula, layers * per_layer * tokens * width)]


def _gathered(rank: Rank) -> list[Term]:
    """Return whole weights that a forward or backward pass gathers out of the shards."""
    n, width, layer, outer = rank.total, rank.width, rank.shape.layer_parameters, rank.shape.outer_parameters
    if rank.zero in (1, 2):
        return []
    if rank.zero == 3:
        live = min(n, DEEPSPEED_LIVE)
        return [Term("gathered weights", f"{live:,} x {width} B", live * width)]
    if rank.config.learners.reshard_after_forward:
        formula = f"(2 layers x {layer:,} + outer {outer:,}) x {width} B"
        return [Term("gathered weights", formula, (2 * layer + outer) * width)]
    return [Term("gathered weights", f"{n:,} x {width} B", n * width)]


def _loss_forward(rank: Rank) -> list[Term]:
    return [_logits(rank, 8 + rank.copy_width, "logits, exponentials, product")] if rank.is_policy else []


def _loss_backward(rank: Rank) -> list[Term]:
    """Return the chunk's logits and gradient, and the output matrix's gradient, summed in float32."""
    if not rank.is_policy:
        return []
    entropy = 4 if rank.config.stage == "rl" and rank.config.algorithm.entropy_coefficient else 0
    terms = [_logits(rank, 4 + entropy + rank.copy_width, "logits, turned into their gradient")]
    if not rank.has_adapters:
        size, each = rank.shape.vocab_size * rank.shape.hidden, 4 + rank.copy_width
        terms.append(Term("output matrix's gradient", f"{size:,} x {each} B", size * each))
    return terms


def _logits(rank: Rank, each: int, what: str) -> Term:
    rows, vocab = min(rank.config.learners.logprob_chunk_tokens, rank.tokens), rank.shape.vocab_size
    return Term("logits of a chunk", f"{rows:,} tokens x {vocab:,} x {each} B ({what})", rows * vocab * each)


def _layer_backward(rank: Rank) -> list[Term]:
    """Return one layer's activations where they are computed again, and what its gradient takes on its way."""
    shape, width, tokens = rank.shape, rank.width, rank.tokens
    terms = []
    if rank.config.learners.activation_checkpointing:
        per_layer = layer_activation_elements(shape)
        terms.append(
            Term("one layer recomputed", f"{tokens:,} tokens x {per_layer:,} x {width} B", per_layer * tokens * width)
        )
    if rank.is_policy and not rank.has_adapters:
        size = shape.vocab_size * shape.hidden
        terms.append(Term("output matrix's gradient", f"{size:,} x {width} B", size * width))
    return [*terms, *_on_the_way(rank, shape.layer_parameters, "a layer's gradient")]


def _end_of_backward(rank: Rank) -> list[Term]:
    """Return what the embedding's gradient takes on its way, when all others are there."""
    return _on_the_way(rank, rank.shape.outer_parameters, "outer gradient")


def _on_the_way(rank: Rank, unit: int, what: str) -> list[Term]:
    """Return the copies of a unit's gradient while it is reduced over ranks."""
    if rank.has_adapters or rank.zero == 3:
        return []
    copies = 2 if rank.config.learners.device == "cpu" and rank.ranks > 1 else 1
    gloo = ", of which gloo makes one" if copies == 2 else ""
    if rank.zero:
        bucket = min(DEEPSPEED_BUCKET, rank.total)
        each = rank.copy_width + 4 * copies
        return [Term("gradient bucket", f"{bucket:,} x {each} B ({copies} in float32{gloo})", bucket * each)]
    formula = f"{what} {unit:,} x 4 B x {copies}{gloo}"
    return [Term("gradient before scatter", formula, unit * 4 * copies)]


def _optimizer_step(rank: Rank) -> list[Term]:
    """Return AdamW's temporaries.

    On GPUs one copy of all second moments, for one pass over all weights. On CPUs two of the largest weight's shard:
    with DeepSpeed that is the whole shard, one flat weight, and ZeRO-3 also copies its gradient.
    """
    if rank.offloads:
        return []
    size, ranks = rank.trained, rank.ranks
    if rank.config.learners.device == "cuda":
        return [Term("optimizer's temporaries", f"{size:,} x 4 B / {ranks}", size * 4 / ranks)]
    if rank.zero == 0:
        size = min(size, rank.shape.vocab_size * rank.shape.hidden)
    copies = 3 if rank.zero == 3 else 2
    return [Term("optimizer's temporaries", f"{size:,} x 4 B x {copies} / {ranks}", size * 4 * copies / ranks)]


def _publication(rank: Rank) -> list[Term]:
    if not rank.is_policy or rank.config.stage != "rl":
        return []
    bucket = rank.config.weights.bucket_mib
    return [Term("weight buckets", f"2 x {bucket:,} MiB", 2 * bucket * MIB)]
