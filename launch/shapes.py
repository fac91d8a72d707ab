"""Shapes of models, read from config.json alone, and what they weigh."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwz_ray.errors import UserError

_QWEN25 = {"architecture": "Qwen2ForCausalLM", "num_kv_heads": 8, "head_dim": 128, "vocab_size": 152064}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes that decide memory: a decoder with grouped-query attention and a gated MLP."""

    architecture: str
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    """The output matrix is the embedding."""
    attention_bias: bool = False
    mlp_bias: bool = False
    num_labels: int = 1
    """Rows of the head of a sequence-classification model."""

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Attention, MLP and both norms of one layer."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        family = self.architecture.removesuffix("ForCausalLM").removesuffix("ForSequenceClassification")
        if family == "Qwen2":
            attention += self.query_width + 2 * self.kv_width  # biases on queries, keys and values, none on the output
        elif self.attention_bias:
            attention += self.query_width + 2 * self.kv_width + self.hidden
        if family == "Qwen3":
            attention += 2 * self.head_dim  # norms of queries and keys
        mlp = 3 * self.hidden * self.intermediate
        if self.mlp_bias:
            mlp += 2 * self.intermediate + self.hidden
        return attention + mlp + 2 * self.hidden

    @property
    def outer_parameters(self) -> int:
        """Embedding, last norm, and the output matrix or the classification head."""
        if self.architecture.endswith("ForSequenceClassification"):
            head = self.hidden * self.num_labels
        else:
            head = 0 if self.tied else self.vocab_size * self.hidden
        return self.vocab_size * self.hidden + self.hidden + head

    @property
    def num_parameters(self) -> int:
        """Count exactly; a tied output matrix counts once."""
        return self.num_layers * self.layer_parameters + self.outer_parameters

    @property
    def kv_elements_per_token(self) -> int:
        return 2 * self.num_layers * self.kv_width


KNOWN = {
    # As published in each repository's config.json.
    "Qwen/Qwen2.5-7B": ModelShape(
        num_layers=28, hidden=3584, intermediate=18944, num_heads=28, tied=False, **{**_QWEN25, "num_kv_heads": 4}
    ),
    "Qwen/Qwen2.5-14B": ModelShape(num_layers=48, hidden=5120, intermediate=13824, num_heads=40, tied=False, **_QWEN25),
    "Qwen/Qwen2.5-32B": ModelShape(num_layers=64, hidden=5120, intermediate=27648, num_heads=40, tied=False, **_QWEN25),
    "Qwen/Qwen2.5-72B": ModelShape(num_layers=80, hidden=8192, intermediate=29568, num_heads=64, tied=False, **_QWEN25),
    "Qwen/Qwen3-4B-Base": ModelShape(
        architecture="Qwen3ForCausalLM",
        num_layers=36,
        hidden=2560,
        intermediate=9728,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151936,
        tied=True,
    ),
}
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")


def shape_of(key: str, path: str) -> ModelShape:
    """Return the shape of a model folder, or of a hub name that is known here.

    Raises UserError for an architecture whose parameters this module cannot count, and for an unknown hub name.
    """
    if path in KNOWN:
        return KNOWN[path]
    file = Path(path) / "config.json"
    if not file.is_file():
        raise UserError(
            f"{key}={path!r}: the plan needs its config.json; name a folder, or one of hub:{', hub:'.join(KNOWN)}"
        )
    return _read_shape(key, path, json.loads(file.read_text(encoding="utf-8")))


def _read_shape(key: str, path: str, found: dict[str, Any]) -> ModelShape:
    architecture = (found.get("architectures") or ["none"])[0]
    known = [f + kind for f in _FAMILIES for kind in ("ForCausalLM", "ForSequenceClassification")]
    if architecture not in known:
        raise UserError(
            f"{key}={path!r}: the plan cannot count the parameters of {architecture}; it knows {', '.join(_FAMILIES)}"
        )
    missing = [name for name in _SIZES if name not in found]
    if missing:
        raise UserError(f"{key}={path!r}: config.json lacks {', '.join(missing)}; restore the file")
    heads = found["num_attention_heads"]
    return ModelShape(
        architecture=architecture,
        num_layers=found["num_hidden_layers"],
        hidden=found["hidden_size"],
        intermediate=found["intermediate_size"],
        num_heads=heads,
        num_kv_heads=found.get("num_key_value_heads") or heads,
        head_dim=found.get("head_dim") or found["hidden_size"] // heads,
        vocab_size=found["vocab_size"],
        tied=found.get("tie_word_embeddings", False),
        attention_bias=found.get("attention_bias", False),
        mlp_bias=found.get("mlp_bias", False),
        num_labels=num_labels(found),
    )


def num_labels(found: dict[str, Any]) -> int:
    """Return the outputs of a sequence-classification config; transformers writes no `id2label` for its default, 2."""
    return len(found["id2label"]) if "id2label" in found else 2


def lora_parameters(shape: ModelShape, rank: int, target_modules: Sequence[str]) -> int:
    """Return the numbers in adapters of this rank on these modules of every layer: rank x (inputs + outputs) each."""
    widths = {
        "q_proj": shape.hidden + shape.query_width,
        "k_proj": shape.hidden + shape.kv_width,
        "v_proj": shape.hidden + shape.kv_width,
        "o_proj": shape.query_width + shape.hidden,
        "gate_proj": shape.hidden + shape.intermediate,
        "up_proj": shape.hidden + shape.intermediate,
        "down_proj": shape.intermediate + shape.hidden,
    }
    unknown = [name for name in target_modules if name not in widths]
    if unknown:
        raise UserError(f"lora.target_modules={unknown[0]!r}: the plan counts adapters on {', '.join(widths)} only")
    return shape.num_layers * rank * sum(widths[name] for name in target_modules)
