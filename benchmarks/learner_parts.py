"""One measured forward and backward pass over one sample, plain or ours, in the process that calls it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.memory_reading import peak_bytes, settle
from launch.shapes import ModelShape
from learners.settings import LearnerSettings
from lwz_ray.config_algorithm import AlgorithmConfig
from lwz_ray.packing import build_microbatch
from lwz_ray.records import TrainSample

PROMPT_TOKENS = 32
WARM_UP_TOKENS = 128
"""Of the pass before the measured one: threads, kernels and gradients are there afterwards."""
CHUNK_TOKENS = 512
TEMPERATURE = 1.0
_WIDTHS = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Case:
    """What one process measures."""

    system: str
    """plain | ours"""
    model: str
    tokens: int
    dtype: str
    threads: int


def write_shallow_model(source: Path, folder: Path, num_layers: int, positions: int) -> None:
    """Write a random model of `source`'s sizes with fewer layers and room for `positions` tokens; no tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(17)
    config = AutoConfig.from_pretrained(source)
    config.num_hidden_layers = num_layers
    config.max_position_embeddings = positions
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)


def one_sample(num_tokens: int, vocab_size: int) -> TrainSample:
    """Return one sample of random tokens: a short prompt, and a completion that is trained."""
    rng = np.random.default_rng(5)
    mask = np.arange(num_tokens) >= PROMPT_TOKENS
    return TrainSample(
        rng.integers(0, vocab_size, num_tokens).astype(np.int32),
        PROMPT_TOKENS,
        mask,
        np.where(mask, -10.0, 0.0).astype(np.float32),
        np.where(mask, 1.0, 0.0).astype(np.float32),
        1.0 / int(mask.sum()),
    )


def learner_settings(
    model: str, dtype: str, threads: int, algorithm: AlgorithmConfig, **changes: Any
) -> LearnerSettings:
    """Return a learner's settings with activation checkpointing and chunked logprobs."""
    plain: dict[str, Any] = {
        "model_path": model,
        "trust_remote_code": False,
        "device": "cpu",
        "dtype": dtype,
        "publish_dtype": dtype,
        "threads": threads,
        "temperature": TEMPERATURE,
        "logprob_chunk_tokens": CHUNK_TOKENS,
        "activation_checkpointing": True,
        "reshard_after_forward": True,
        "lr": 1e-5,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "bucket_bytes": 2**26,
        "staging_candidates": ("/dev/shm", "/tmp"),
        "staging_bytes": 2**28,
        "timeout_s": 600.0,
        "seed": 0,
        "algorithm": algorithm,
    }
    return LearnerSettings(**plain | changes)


def measure(case: Case, algorithm: AlgorithmConfig) -> dict[str, Any]:
    """Return seconds and bytes of one forward and backward pass.

    Subtracted from the peak is the resident memory right before the pass: imports, the model in the compute dtype, its
    gradients (made by a short pass before), and what that pass left behind.
    """
    torch.set_num_threads(case.threads)
    model, run = _plain(case) if case.system == "plain" else _ours(case, algorithm)
    run(WARM_UP_TOKENS)
    for parameter in model.parameters():  # the gradients stay; the measured pass adds to them
        if parameter.grad is not None:
            parameter.grad.zero_()
    before = settle()
    started = time.monotonic()
    loss = run(case.tokens)
    seconds = time.monotonic() - started
    return {"bytes": peak_bytes() - before, "before_bytes": before, "seconds": seconds, "loss": loss}


def _plain(case: Case) -> tuple[torch.nn.Module, Callable[[int], float]]:
    """Return the transformers model and a pass through its own loss, with the logits of every token."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        case.model, dtype=getattr(torch, case.dtype), attn_implementation="sdpa", use_safetensors=True
    )
    model.config.use_cache = False
    model.train()

    def run(num_tokens: int) -> float:
        ids = torch.from_numpy(one_sample(num_tokens, model.config.vocab_size).token_ids.astype(np.int64))[None]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return float(loss.detach())

    return model, run


def _ours(case: Case, algorithm: AlgorithmConfig) -> tuple[torch.nn.Module, Callable[[int], float]]:
    """Return the learner's network in the compute dtype, without a backend, and a pass through its objective."""
    from learners.models import build_model
    from learners.objective import build_objective

    settings = learner_settings(case.model, case.dtype, case.threads, algorithm)
    model: Any = build_model(settings)
    for parameter in model.parameters():  # not the buffers: rotary frequencies stay float32
        parameter.data = parameter.data.to(getattr(torch, case.dtype))
    objective = build_objective(settings)
    vocab = model.lm.config.vocab_size

    def run(num_tokens: int) -> float:
        row = build_microbatch([one_sample(num_tokens, vocab)], [[0]])
        loss, _ = objective.loss(model, row, torch.device("cpu"))
        loss.backward()
        return float(loss.detach())

    return model, run


def plain_bytes(shape: ModelShape, tokens: int, dtype: str) -> float:
    """Estimate what the plain pass takes above the model: what every layer keeps, and three float32 copies of logits.

    The copies are the logits themselves, their log-softmax and its gradient, besides logits and gradient in `dtype`.
    """
    from launch.memory import layer_activation_elements

    width = _WIDTHS[dtype]
    layers = shape.num_layers * layer_activation_elements(shape) * width
    return tokens * (layers + shape.vocab_size * (3 * 4 + 2 * width * (dtype != "float32")))
