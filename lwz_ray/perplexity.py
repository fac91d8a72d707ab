"""How well a language model predicts held-out samples: nats a token and perplexity, overall and by source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lwz_ray.records import TokenFacts, TrainSample
from lwz_ray.statistics import bootstrap_ratios, percentile_interval

_SAME = ("tokens", "source_of", "text_of")
"""What two scores of the same samples agree in."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutScores:
    """Negative log-likelihoods of held-out samples under one state of the weights."""

    nll: np.ndarray
    """float64 [num_samples], in nats, summed over the sample's trained tokens"""
    tokens: np.ndarray
    """int64 [num_samples], the trained tokens"""
    source_of: np.ndarray
    """int64 [num_samples]"""
    text_of: np.ndarray
    """int64 [num_samples], 0 … num_texts - 1: the text that the sample is a piece of, or the whole of"""

    def __post_init__(self) -> None:
        shapes = [column.shape for column in (self.nll, self.tokens, self.source_of, self.text_of)]
        if len(set(shapes)) > 1 or self.nll.ndim != 1:
            raise ValueError(f"held-out scores: {shapes}")
        if self.tokens.sum() == 0:
            raise ValueError("held-out scores without a trained token")


def nll_of(samples: Sequence[TrainSample], facts: Sequence[TokenFacts]) -> np.ndarray:
    """Return float64 [num_samples], from what the learner said of their tokens: `HeldOutScores.nll`.

    Raises ValueError where it said nothing, or a number that is not finite: such weights have no perplexity.
    """
    nll = []
    for i, (sample, said) in enumerate(zip(samples, facts, strict=True)):
        if said.old_logprobs is None:
            raise ValueError(f"held-out sample {i} of {len(samples)} has no logprobs")
        nll.append(-float(said.old_logprobs[sample.loss_mask].sum(dtype=np.float64)))
    found = np.asarray(nll, dtype=np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"{int((~np.isfinite(found)).sum())} of {len(found)} held-out samples have no finite loss")
    return found


def scores_of(samples: Sequence[TrainSample], texts: Sequence[int], nll: np.ndarray) -> HeldOutScores:
    """Return the scores of samples. texts: the text that each is of; nll: as `nll_of`."""
    tokens = np.asarray([s.num_trained for s in samples], dtype=np.int64)
    sources = np.asarray([s.source for s in samples], dtype=np.int64)
    return HeldOutScores(nll, tokens, sources, np.asarray(texts, dtype=np.int64))


def measure(scores: HeldOutScores, names: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    """Return loss (nats a token) and perplexity = exp(loss), each with a 95% interval, and the loss of each source.

    Tokens weigh alike: loss = sum of nll / sum of tokens. The interval is a bootstrap over texts, since the tokens of
    one go together, also where it is cut into pieces. Sources without a held-out token are absent.
    """
    columns, tokens = _by_column(scores, scores.nll, names)
    draws = bootstrap_ratios(columns, tokens, resamples, seed)
    loss = float(columns[:, 0].sum() / tokens[:, 0].sum())
    interval = percentile_interval(loss, draws[:, 0])
    out: dict[str, Any] = {
        "num_texts": int(columns.shape[0]),
        "num_tokens": int(scores.tokens.sum()),
        "loss": interval.as_dict(),
        "perplexity": {name: math.exp(value) for name, value in interval.as_dict().items()},
        "by_source": [],
    }
    for i, name in enumerate(names, start=1):
        if count := int(tokens[:, i].sum()):
            mean = float(columns[:, i].sum() / count)
            found = percentile_interval(mean, draws[:, i]).as_dict()
            row = {"source": name, "num_texts": int((tokens[:, i] > 0).sum()), "num_tokens": count}
            out["by_source"].append({**row, **found, "perplexity": math.exp(mean)})
    return out


def compare(before: HeldOutScores, after: HeldOutScores, names: Sequence[str], resamples: int, seed: int) -> Any:
    """Return after - before in nats a token, with a 95% interval by a paired bootstrap over texts, and by source.

    Below 0 the model predicts the held-out texts better. Raises ValueError where the samples are not the same.
    """
    if any(not np.array_equal(getattr(before, name), getattr(after, name)) for name in _SAME):
        raise ValueError("a paired comparison needs the same held-out samples before and after")
    columns, tokens = _by_column(after, after.nll - before.nll, names)
    draws = bootstrap_ratios(columns, tokens, resamples, seed)
    found = []
    for i, name in enumerate(("all", *names)):
        if count := tokens[:, i].sum():
            interval = percentile_interval(float(columns[:, i].sum() / count), draws[:, i])
            found.append({"source": name, **interval.as_dict()})
    return {"loss": {k: v for k, v in found[0].items() if k != "source"}, "by_source": found[1:]}


def _by_column(scores: HeldOutScores, values: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return values and tokens float64 [num_texts, 1 + num_sources], summed by text: all, then those of each source."""
    chosen = np.ones((values.shape[0], 1 + len(names)))
    for i in range(len(names)):
        chosen[:, i + 1] = scores.source_of == i
    sums = np.zeros((2, int(scores.text_of.max()) + 1, 1 + len(names)))
    np.add.at(sums[0], scores.text_of, values[:, None] * chosen)
    np.add.at(sums[1], scores.text_of, scores.tokens[:, None] * chosen)
    return sums[0], sums[1]
