"""Batches of the parity runs: scored groups, what a learner said of their tokens, and the credit of an algorithm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lwz_ray.batching import minibatches_of
from lwz_ray.config import Config
from lwz_ray.credit import assign_credit
from lwz_ray.records import Completion, Group, ParsedText, Prompt, Sample, TokenFacts, TrainSample, VersionSpan

LENGTHS = ((5, 17, 2, 30), (11, 1, 40, 23))
"""Completion tokens of every sample of the two groups."""
VOCABULARY = 49152
NATS = -float(np.log(VOCABULARY))
"""What a random model gives a token, about."""
SPREAD = 0.1
"""Of old and reference logprobs about the rollout's, in nats."""


def batches_of(config: Config, seed: int) -> list[TrainSample]:
    """Return one optimizer batch with the advantages, denominators and facts of the config's algorithm."""
    rng = np.random.default_rng(seed)
    groups = [_group(g, lengths, config, rng) for g, lengths in enumerate(LENGTHS)]
    facts = [[_facts(s, rng) for s in group.samples] for group in groups]
    credits = assign_credit(groups, facts, config)
    (samples,) = minibatches_of(groups, credits, facts, config.algorithm, config.sampling.max_tokens)
    return samples


def _group(index: int, lengths: Sequence[int], config: Config, rng: np.random.Generator) -> Group:
    prompt = Prompt(f"p{index}", "Write.", "en", None, index)
    prompt_ids = rng.integers(0, VOCABULARY, 4 + index).astype(np.int32)
    samples = []
    for i, length in enumerate(lengths):
        ids = rng.integers(0, VOCABULARY, length).astype(np.int32)
        logprobs = (NATS + SPREAD * rng.standard_normal(length)).astype(np.float32)
        completion = Completion("text", ids, logprobs, "stop", (VersionSpan(0, length, 0),))
        rewards: dict[str, Any] = {name: float(rng.random()) for name in config.rewards.active}
        parsed = ParsedText(None, "text", True, 1.0)
        samples.append(Sample(index, i, prompt, prompt_ids, completion, parsed, 1, rewards))
    return Group(index, prompt, tuple(samples))


def _facts(sample: Sample, rng: np.random.Generator) -> TokenFacts:
    num_prompt, length = len(sample.prompt_token_ids), sample.completion.num_tokens

    def column(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros(num_prompt), values]).astype(np.float32)

    near = [column(sample.completion.rollout_logprobs + SPREAD * rng.standard_normal(length)) for _ in range(2)]
    return TokenFacts(near[0], near[1], column(rng.standard_normal(length)))


def padded_value_loss(model: Any, samples: Sequence[TrainSample], value_clip: float | None) -> torch.Tensor:
    """Return the critic's loss (scalar, with gradient) over the padded batch, on matrices.

    sum_t w_t max((V_t - R_t)^2, (clip(V_t, V_old - c, V_old + c) - R_t)^2) / 2, V_t the head's value of the position
    before token t.
    """
    longest = max(s.num_tokens for s in samples)

    def matrix(columns: Sequence[np.ndarray | None]) -> torch.Tensor:
        out = torch.zeros(len(samples), longest)
        for i, column in enumerate(columns):
            assert column is not None
            out[i, : len(column)] = torch.from_numpy(np.asarray(column, dtype=np.float32))
        return out

    ids = matrix([s.token_ids for s in samples]).long()
    attended = matrix([np.ones(s.num_tokens) for s in samples]).long()
    hidden = model.base_model(input_ids=ids, attention_mask=attended, use_cache=False).last_hidden_state
    values = model.score(hidden)[:, :-1, 0]
    returns = matrix([s.returns for s in samples])[:, 1:]
    old = matrix([None if s.facts is None else s.facts.values for s in samples])[:, 1:]
    weights = matrix([s.loss_mask * s.token_weight for s in samples])[:, 1:]
    squares = (values - returns) ** 2
    if value_clip is not None:
        near = torch.minimum(torch.maximum(values, old - value_clip), old + value_clip)
        squares = torch.maximum(squares, (near - returns) ** 2)
    return (weights * squares / 2).sum()
