"""From scored groups and their credit to what the learner trains on: masks, global denominators, minibatches."""

from collections.abc import Sequence

import numpy as np

from lwz_ray.config_algorithm import AlgorithmConfig
from lwz_ray.credit import Credit, GroupFacts
from lwz_ray.records import Group, Sample, TokenFacts, TrainSample
from lwz_ray.steering import is_masked
from lwz_ray.token_weights import token_weights_of


def unlabelled_sample(sample: Sample) -> TrainSample:
    """Join prompt and completion without advantages or weight, every completion token in the mask: to be annotated.

    Samples that are masked out of the loss are asked about too: their KL is part of what their group is measured by.
    """
    nothing = Credit(np.zeros(sample.completion.num_tokens))
    return train_sample(sample, nothing, 0.0, masked=False)


def train_sample(
    sample: Sample,
    credit: Credit,
    token_weight: float,
    masked: bool,
    facts: TokenFacts | None = None,
    policy_version: int | None = None,
) -> TrainSample:
    """Join prompt and completion; the loss mask comes from the roles.

    policy_version: the one being trained, which the tokens' ages are measured from; None: all ages 0.
    """
    num_prompt, completion = len(sample.prompt_token_ids), sample.completion

    def after_prompt(values: np.ndarray, dtype: type) -> np.ndarray:
        column = np.zeros(num_prompt + completion.num_tokens, dtype=dtype)
        column[num_prompt:] = values
        return column

    mask = after_prompt(np.full(completion.num_tokens, not masked), np.bool_)
    ages = None
    if policy_version is not None:
        ages = after_prompt(policy_version - versions_of(sample), np.int32)
    return TrainSample(
        token_ids=np.concatenate([sample.prompt_token_ids, completion.token_ids]).astype(np.int32),
        num_prompt_tokens=num_prompt,
        loss_mask=mask,
        rollout_logprobs=after_prompt(completion.rollout_logprobs, np.float32),
        advantages=np.where(mask, after_prompt(credit.advantages, np.float32), np.float32(0.0)),
        token_weight=token_weight,
        token_ages=ages,
        facts=facts,
        returns=None if credit.returns is None else after_prompt(credit.returns, np.float32),
    )


def versions_of(sample: Sample) -> np.ndarray:
    """Return the policy version that sampled each completion token, int64 [num_completion_tokens]."""
    out = np.empty(sample.completion.num_tokens, dtype=np.int64)
    out[:] = sample.completion.policy_version_min
    for span in sample.completion.version_spans:
        out[span.start : span.stop] = span.policy_version
    return out


def minibatches_of(
    groups: Sequence[Group],
    credits: Sequence[Sequence[Credit]],
    facts: GroupFacts | None,
    algorithm: AlgorithmConfig,
    fixed_length_tokens: int,
    policy_version: int | None = None,
) -> list[list[TrainSample]]:
    """Cut a batch into `minibatches` runs of groups, gone through `epochs` times; each has its own denominators.

    credits, facts: [group][sample].
    """
    out = []
    for part in np.array_split(np.arange(len(groups)), algorithm.minibatches):
        at = [(g, i) for g in part for i in range(len(groups[g].samples))]
        samples = [groups[g].samples[i] for g, i in at]
        masked = [is_masked(s, algorithm) for s in samples]
        lengths = [0 if m else s.completion.num_tokens for s, m in zip(samples, masked, strict=True)]
        weights = token_weights_of(lengths, algorithm.loss_aggregation, fixed_length_tokens)
        out.append(
            [
                train_sample(s, credits[g][i], w, m, facts[g][i] if facts else None, policy_version)
                for (g, i), s, w, m in zip(at, samples, weights, masked, strict=True)
            ]
        )
    return out * algorithm.epochs
