"""Credit: from scored groups, and what the learners say of their tokens, to an advantage for every token of a batch.

rewards ─▶ one number a sample, by group or batch ─▶ the same for each of its tokens   (GRPO, RLOO, GDPO, …)
       └─▶ one reward, summed ─┬─▶ minus the KL that is still to come, whitened         (batch_whitened)
                               └─▶ at the last token, minus KL at each: GAE             (gae)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lwz_ray.advantages import batch_advantages, batch_means, summed_rewards, whiten
from lwz_ray.config import Config
from lwz_ray.config_algorithm import AlgorithmConfig
from lwz_ray.gae import gae
from lwz_ray.kl import kl_terms
from lwz_ray.records import Group, Sample, TokenFacts
from lwz_ray.steering import OVERLONG, is_masked, steering_rewards, steering_weights

KL = "kl"
"""The component that the KL penalty is, where it is taken from a sample's reward."""
GroupFacts = Sequence[Sequence[TokenFacts]]
"""[group][sample]"""


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """What the tokens of one completion earned."""

    advantages: np.ndarray
    """float64 [num_completion_tokens]"""
    returns: np.ndarray | None = None
    """float64 [num_completion_tokens], what the critic's values are drawn to; None without a critic"""

    @property
    def mean_advantage(self) -> float:
        return float(self.advantages.mean()) if self.advantages.size else 0.0


def assign_credit(groups: Sequence[Group], facts: GroupFacts | None, config: Config) -> list[list[Credit]]:
    """Return [group][sample] credits of a whole batch.

    facts: of every sample, where `algorithm.needs_annotation`. Raises ValueError where the algorithm needs facts that
    are not there.
    """
    algorithm = config.algorithm
    penalties = _kl_penalties(groups, facts, algorithm)
    if algorithm.advantage == "gae":
        return _gae_credit(groups, facts, penalties, config)
    if algorithm.advantage == "batch_whitened":
        return _whitened_credit(groups, penalties, config)
    rewards, weights = [steering_rewards(g, config) for g in groups], steering_weights(config)
    if penalties is not None:
        sums = [np.asarray([-p.sum() for p in group]) for group in penalties]
        rewards = [r | {KL: s} for r, s in zip(rewards, sums, strict=True)]
        weights = weights | {KL: 1.0}
    advantages = batch_advantages(rewards, weights, algorithm.advantage)
    return [
        [Credit(np.full(s.completion.num_tokens, a, dtype=np.float64)) for s, a in zip(g.samples, row, strict=True)]
        for g, row in zip(groups, advantages, strict=True)
    ]


def credit_metrics(groups: Sequence[Group], facts: GroupFacts | None, config: Config) -> dict[str, float]:
    """Return the means over samples of what is taken from the rewards."""
    out = {}
    if config.algorithm.overlong_buffer_tokens:
        values = np.concatenate([steering_rewards(g, config)[OVERLONG] for g in groups])
        out["rewards/overlong"] = float(values.mean())
    penalties = _kl_penalties(groups, facts, config.algorithm)
    if penalties is not None:
        out["rewards/kl"] = float(np.mean([-p.sum() for group in penalties for p in group]))
    return out


def _kl_penalties(
    groups: Sequence[Group], facts: GroupFacts | None, algorithm: AlgorithmConfig
) -> list[list[np.ndarray]] | None:
    """Return each token's beta kl_t, float64 [num_completion_tokens]; None where no KL is taken from the reward."""
    if not algorithm.kl_coefficient or algorithm.kl_in != "reward":
        return None
    out = []
    for group, known in zip(groups, _present(facts), strict=True):
        row = []
        for sample, fact in zip(group.samples, known, strict=True):
            old = torch.from_numpy(_completion_part(sample, fact.old_logprobs, "old_logprobs"))
            ref = torch.from_numpy(_completion_part(sample, fact.ref_logprobs, "ref_logprobs"))
            row.append(algorithm.kl_coefficient * kl_terms(old, ref, algorithm.kl_estimator).numpy())
        out.append(row)
    return out


def _whitened_credit(
    groups: Sequence[Group], penalties: list[list[np.ndarray]] | None, config: Config
) -> list[list[Credit]]:
    """Return REINFORCE++'s (arXiv 2501.03262): A_t = R - beta sum_{t' >= t} kl_t', whitened over the batch's tokens."""
    out = []
    for index, (group, rewards) in enumerate(zip(groups, _summed(groups, config), strict=True)):
        row = []
        for i, (sample, reward) in enumerate(zip(group.samples, rewards, strict=True)):
            advantages = np.full(sample.completion.num_tokens, reward, dtype=np.float64)
            if penalties is not None:
                advantages -= np.cumsum(penalties[index][i][::-1])[::-1]
            row.append(Credit(advantages))
        out.append(row)
    return _whitened(groups, out, config.algorithm)


def _gae_credit(
    groups: Sequence[Group], facts: GroupFacts | None, penalties: list[list[np.ndarray]] | None, config: Config
) -> list[list[Credit]]:
    """Return PPO's: GAE of r_t = -beta kl_t, plus the sample's summed reward at its last token."""
    algorithm, sums, out = config.algorithm, _summed(groups, config), []
    for index, (group, known) in enumerate(zip(groups, _present(facts), strict=True)):
        row = []
        for i, sample in enumerate(group.samples):
            values = _completion_part(sample, known[i].values, "values")
            rewards = np.zeros_like(values) if penalties is None else -penalties[index][i]
            rewards[-1:] += sums[index][i]
            row.append(Credit(*gae(rewards, values, algorithm.gae_gamma, algorithm.gae_lambda)))
        out.append(row)
    return _whitened(groups, out, algorithm) if config.critic.whiten_advantages else out


def _summed(groups: Sequence[Group], config: Config) -> list[np.ndarray]:
    rewards, weights = [steering_rewards(g, config) for g in groups], steering_weights(config)
    means = batch_means(rewards, weights)
    return [summed_rewards(r, weights, means) for r in rewards]


def _whitened(groups: Sequence[Group], credits: list[list[Credit]], algorithm: AlgorithmConfig) -> list[list[Credit]]:
    """Whiten the advantages over all trained tokens of the batch; samples that are masked out of the loss get 0."""
    masked = [[is_masked(s, algorithm) for s in g.samples] for g in groups]
    rows = list(zip(credits, masked, strict=True))
    trained = [c.advantages for row, out in rows for c, m in zip(row, out, strict=True) if not m]
    found = iter(whiten(trained))
    return [
        [
            replace(c, advantages=np.zeros_like(c.advantages) if m else next(found))
            for c, m in zip(row, out, strict=True)
        ]
        for row, out in rows
    ]


def _present(facts: GroupFacts | None) -> GroupFacts:
    if facts is None:
        raise ValueError("the algorithm's advantages need facts about every token; annotate the samples first")
    return facts


def _completion_part(sample: Sample, column: np.ndarray | None, name: str) -> np.ndarray:
    """Return a fact's completion tokens as float64."""
    if column is None:
        raise ValueError(f"group {sample.group_id}, sample {sample.sample_index}: the learner gave no {name}")
    return column[len(sample.prompt_token_ids) :].astype(np.float64)
