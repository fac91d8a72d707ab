"""A random Llama with a small vocabulary, and batches in its tokens: logits of whole sequences cost nothing."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lwz_ray.records import TrainSample

VOCABULARY = 512
_TINY = math.log(49152)
"""-logprob that `tests.learner_parts.batch` gives a token, about; that of the tiny model."""


def write_small_model(folder: Path, **sizes: Any) -> Path:
    """Write a float32 model of 2 layers, 4 heads and 2 key-value heads to the folder, which is returned."""
    plain: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(11)
    LlamaForCausalLM(LlamaConfig(**plain | sizes)).save_pretrained(folder)
    return folder


def in_small_vocabulary(samples: Sequence[TrainSample]) -> list[TrainSample]:
    """Return samples of `tests.learner_parts.batch` in this model's tokens, with logprobs of its size."""

    def near(logprobs: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.where(mask, logprobs + _TINY - math.log(VOCABULARY), 0.0).astype(np.float32)

    return [
        replace(s, token_ids=s.token_ids % VOCABULARY, rollout_logprobs=near(s.rollout_logprobs, s.loss_mask))
        for s in samples
    ]
